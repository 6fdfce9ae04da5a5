package operate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// elsewhereAtMost is the maximum number of messages that Elsewhere lists per place.
const elsewhereAtMost = 3

// searchTimeout bounds how long Elsewhere searches the outbox.
const searchTimeout = time.Second

// Elsewhere adds to a NotFound error where unapplied messages about the missing thing
// are: among the failed messages or in the outbox. A message is about the thing if it has
// the given key and a consumer with the given prefix receives it. Elsewhere returns other
// errors unchanged.
func (o *Operator) Elsewhere(ctx context.Context, err error, key, consumers string) error {
	if event.KindOf(err) != event.NotFound {
		return err
	}

	var places []string

	for _, state := range []failed.State{failed.Stopped, failed.Waiting} {
		entries, readErr := o.Failed.Summaries(ctx, failed.Filter{Key: key, State: state}, elsewhereAtMost)
		if readErr != nil {
			return readErr
		}

		for _, e := range slices.Backward(entries) {
			if strings.HasPrefix(e.Consumer, consumers) {
				places = append(places, place(e))
			}
		}
	}

	// The outbox has no index on keys, so a long outbox is not searched completely.
	bounded, cancel := context.WithTimeout(ctx, searchTimeout)
	defer cancel()

	unpublished, readErr := o.unpublished(bounded, key, consumers)
	if readErr != nil && (bounded.Err() == nil || ctx.Err() != nil) {
		return readErr
	}

	if places = append(places, unpublished...); len(places) == 0 {
		return err
	}

	return event.Errorf(event.NotFound, "%v, but %s", err, strings.Join(places, "; "))
}

// maxCauseShown is the maximum length of an error in Elsewhere, in bytes.
const maxCauseShown = 200

// place says what became of a failed message.
func place(e failed.Entry) string {
	cause, _, _ := strings.Cut(e.Error, "\n")
	cause = event.Text(event.Shorten(cause, maxCauseShown))

	switch {
	case e.State == failed.Stopped:
		return fmt.Sprintf("a message on %s for it is stopped: %s (`millrace failed show %d`)", e.Topic, cause, e.ID)
	case e.Error == "":
		return fmt.Sprintf("a message on %s for it is blocked by an earlier one with its key (`millrace failed show %d`)", e.Topic, e.ID)
	default:
		return fmt.Sprintf("a message on %s for it is waiting for its next attempt: %s (`millrace failed show %d`)", e.Topic, cause, e.ID)
	}
}

// unpublished says which messages with a key are in the outbox.
func (o *Operator) unpublished(ctx context.Context, key, consumers string) ([]string, error) {
	var topics []string

	for _, route := range o.Router.Routes() {
		if strings.HasPrefix(route.Consumer, consumers) {
			topics = append(topics, route.Topic)
		}
	}

	places, err := postgres.Collect(ctx, o.Pool, func(row pgx.CollectableRow) (string, error) {
		var (
			topic   string
			created time.Time
			due     *time.Time
			refused *string
		)

		err := row.Scan(&topic, &created, &due, &refused)
		text := fmt.Sprintf("a message on %s for it has been in the outbox since %s and has not been delivered yet (`millrace status`)", topic, created.UTC().Format(time.RFC3339))

		switch {
		case refused != nil:
			text = fmt.Sprintf("the broker refuses a message on %s for it (`millrace refused list`): %s", topic, *refused)
		case due != nil:
			text = fmt.Sprintf("a message on %s for it is scheduled for %s", topic, due.UTC().Format(time.RFC3339))
		}

		return text, err
	}, `SELECT topic, created_at, nullif(available_at, 'infinity'), refused FROM outbox WHERE key = $1 AND topic = ANY($2) ORDER BY seq LIMIT $3`, key, topics, elsewhereAtMost)
	if err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}

	return places, nil
}
