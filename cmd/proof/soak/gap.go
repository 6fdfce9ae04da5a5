package soak

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/cmd/proof/wire"
)

// maxGap is how long a rolling restart may keep a partition or queue from being consumed.
const maxGap = 3 * time.Second

// application holds the times at which a record was written and applied.
type application struct{ written, applied time.Time }

// longestGap returns the longest time in which no record of a partition or queue was applied,
// although at least one had been written and not yet applied.
func longestGap(list []application) (longest time.Duration) {
	list = slices.SortedFunc(slices.Values(list), func(a, b application) int { return a.applied.Compare(b.applied) })

	// oldest[i] is when the oldest record in list[i:] was written.
	oldest := make([]time.Time, len(list))

	for i, a := range slices.Backward(list) {
		oldest[i] = a.written
		if i+1 < len(list) && oldest[i+1].Before(a.written) {
			oldest[i] = oldest[i+1]
		}
	}

	for i, a := range list {
		since := oldest[i]
		if i > 0 && list[i-1].applied.After(since) {
			since = list[i-1].applied
		}

		longest = max(longest, a.applied.Sub(since))
	}

	return longest
}

// byQueue returns those messages of a load that have been sent, with the times at which
// they were, by queue.
func byQueue(load []outgoing, sentAt map[string]time.Time) map[wire.Place][]wire.Record {
	all := map[wire.Place][]wire.Record{}

	for _, o := range load {
		if at, sent := sentAt[o.name()]; sent && !o.repeated {
			p := wire.Place{Topic: o.topic}
			all[p] = append(all[p], wire.Record{Place: p, ID: o.id, At: at})
		}
	}

	return all
}

// applications returns the times at which a partition's or queue's records were written and
// applied.
func applications(ctx context.Context, db *pgxpool.Pool, list []wire.Record) ([]application, error) {
	ids := make([]uuid.UUID, len(list))
	written := make(map[uuid.UUID]time.Time, len(list))

	for i, r := range list {
		ids[i] = r.ID

		if _, repeated := written[r.ID]; !repeated {
			written[r.ID] = r.At
		}
	}

	rows, err := db.Query(ctx, `SELECT message_id, applied_at FROM inbox WHERE consumer = $1 AND message_id = ANY($2)`,
		wire.Consumers[list[0].Topic], ids)
	if err != nil {
		return nil, err
	}

	var (
		found   []application
		id      uuid.UUID
		applied time.Time
	)

	_, err = pgx.ForEachRow(rows, []any{&id, &applied}, func() error {
		found = append(found, application{written: written[id], applied: applied})

		return nil
	})

	return found, err
}
