package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// summary is the payload that the writer publishes in these tests.
type summary struct {
	Words int `json:"words"`
}

func (summary) Topic() string { return "summaries" }

func (summary) Key() string { return "" }

func (s summary) Validate() error {
	if s.Words < 1 {
		return errors.New("words: is less than 1, expected 1 or more")
	}

	return nil
}

// summarize publishes the number of words in a note.
func summarize(_ context.Context, _ pgx.Tx, e event.Event[note]) ([]event.Outgoing, error) {
	return []event.Outgoing{e.Then(summary{Words: len(strings.Fields(e.Payload.Text))})}, nil
}

// failure returns the only stopped message's error.
func (r *rig) failure() string {
	r.t.Helper()

	pgtest.Eventually(r.t, "the message is stopped", func() bool { return len(r.stopped()) == 1 })

	return r.stopped()[0].Error
}

func TestPublishingAnUndeclaredEventFails(t *testing.T) {
	t.Parallel()

	r := start(t, newPool(t), func(router *consumer.Router) { consumer.On(router, "writer", summarize) })
	r.send(message("a", "one two"))

	if got := r.failure(); !strings.Contains(got, "consumer writer returned an event on topic summaries, which it does not declare") {
		t.Errorf("got %s", got)
	}
}

func TestPublishingAnInvalidPayloadFails(t *testing.T) {
	t.Parallel()

	r := start(t, newPool(t), func(router *consumer.Router) { consumer.On(router, "writer", summarize, summary{}) })
	r.send(message("a", " "))

	if got := r.failure(); !strings.Contains(got, "consumer writer: encoding payload of summaries: words: is less than 1") {
		t.Errorf("got %s", got)
	}
}

func TestRegisteringAHandlerAfterRunPanics(t *testing.T) {
	t.Parallel()

	r := start(t, newPool(t), func(router *consumer.Router) { consumer.On(router, "writer", write) })

	defer func() {
		if got := fmt.Sprint(recover()); !strings.Contains(got, "consumer late is registered after Run") {
			t.Errorf("got %s", got)
		}
	}()

	consumer.On(r.router, "late", summarize)
}

func TestCodeOutsideHandlersPublishesOnlyOnKnownTopics(t *testing.T) {
	t.Parallel()

	r := start(t, newPool(t), func(router *consumer.Router) { consumer.On(router, "writer", write) })
	publish := func(p event.Payload) error {
		return postgres.InTx(t.Context(), r.pool, func(tx pgx.Tx) error {
			return consumer.NewAppend(r.router)(t.Context(), tx, []event.Outgoing{event.Start(p)})
		})
	}

	if err := publish(summary{Words: 1}); err == nil || !strings.Contains(err.Error(), "there is no topic summaries") {
		t.Errorf("got %v", err)
	}

	if err := publish(note{ID: "a", Text: "b"}); err != nil {
		t.Error(err)
	}
}

// TestContentionIsNoFailure: a message whose transaction collides more often than a failure
// is retried is applied in the end.
func TestContentionIsNoFailure(t *testing.T) {
	t.Parallel()

	collisions := consumer.DefaultConfig().Retries + 2

	r := start(t, newPool(t), func(router *consumer.Router) {
		consumer.On(router, "writer", func(ctx context.Context, tx pgx.Tx, e event.Event[note]) ([]event.Outgoing, error) {
			if collisions--; collisions >= 0 {
				return nil, fmt.Errorf("writing a note: %w", &postgres.ContentionError{Err: errors.New("another one was faster")})
			}

			return write(ctx, tx, e)
		})
	})
	r.send(message("a", "1"))

	pgtest.Eventually(t, "the message is applied", func() bool { return r.texts("a") == "1" })

	if stopped := r.stopped(); len(stopped) != 0 {
		t.Errorf("stopped %+v", stopped)
	}
}
