package wire

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Unrecorded returns the ids that a consumer has neither applied nor stored as failed.
// A message moves from one table to the other in a transaction, so one statement always
// sees it in one of them.
func Unrecorded(ctx context.Context, db *pgxpool.Pool, consumer string, ids []uuid.UUID) ([]uuid.UUID, error) {
	rows, err := db.Query(ctx, `
		SELECT id FROM unnest($2::uuid[]) AS s (id)
		WHERE NOT EXISTS (SELECT FROM inbox i WHERE i.consumer = $1 AND i.message_id = s.id OFFSET 0)
		  AND NOT EXISTS (SELECT FROM failed_messages f WHERE f.consumer = $1 AND f.message_id = s.id OFFSET 0)`, consumer, ids)
	if err != nil {
		return nil, err
	}

	return pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
}

// Offsets proves that a committed offset never passes a message in hand. Each sample
// reads the offsets first and the database afterwards. Whatever a crash at the first
// read would have skipped must be recorded by the second.
type Offsets struct {
	Kafka *Kafka
	DB    *pgxpool.Pool

	// proven is the offset up to which all records are recorded.
	proven map[Place]int64
	// Samples and Records count what was looked at.
	Samples, Records int
	// Passed describes the records in hand that an offset has passed.
	Passed []string
}

// Watch samples until ctx ends.
func (o *Offsets) Watch(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := o.Sample(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("proving committed offsets: %w", err)
		}

		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}

	return nil
}

// Sample reads the committed offsets, and then looks up what is below them.
func (o *Offsets) Sample(ctx context.Context) error {
	committed, err := o.Kafka.Committed()
	if err != nil {
		return err
	}

	o.Samples++

	if o.proven == nil {
		o.proven = map[Place]int64{}
	}

	below, next := map[string][]Record{}, map[Place]int64{} // by topic

	for p, offset := range committed {
		if offset <= o.proven[p] {
			continue
		}

		list, err := o.Kafka.Records(ctx, p, o.proven[p], offset)
		if err != nil {
			return err
		}

		below[p.Topic] = append(below[p.Topic], list...)
		next[p] = offset
	}

	for topic, list := range below {
		if err := o.prove(ctx, topic, list); err != nil {
			return err
		}
	}

	maps.Copy(o.proven, next)

	return nil
}

// prove looks up records below the committed offsets of a topic.
func (o *Offsets) prove(ctx context.Context, topic string, list []Record) error {
	ids := make([]uuid.UUID, len(list))
	at := make(map[uuid.UUID]Record, len(list))

	for i, r := range list {
		ids[i], at[r.ID] = r.ID, r
	}

	missing, err := Unrecorded(ctx, o.DB, Consumers[topic], ids)
	if err != nil {
		return err
	}

	o.Records += len(list)

	for _, id := range missing {
		o.Passed = append(o.Passed, fmt.Sprintf("%s@%d (message %s)", at[id].Place, at[id].Offset, id))
	}

	return nil
}
