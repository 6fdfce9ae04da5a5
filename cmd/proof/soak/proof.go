package soak

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// consumers maps each consumed topic to its consumer.
var consumers = map[string]string{
	ordersCreated:               "fulfilment.place",
	"payments.requested":        "fulfilment.charge",
	"orders.completed":          "fulfilment.complete",
	"orders.cancel.requested":   "fulfilment.cancel",
	"orders.expiry.due":         "fulfilment.expire",
	"payments.refund.requested": "fulfilment.refund",
	"payments.reported":         "fulfilment.report",
	"inventory.restocked":       "inventory.restock",
	userCreated:                 "account.create",
	userUpdated:                 "account.update",
	"user.events":               "account.legacy",
	"notifications":             "notification.route",
	"notifications.email":       "notification.email",
	"notifications.webhook":     "notification.webhook",
	"notifications.log":         "notification.log",
	"analytics.track":           "analytics.track",
}

// unrecorded returns the ids that a consumer has neither applied nor stored as failed.
// A message moves from one table to the other in a transaction, so one statement always
// sees it in one of them.
func unrecorded(ctx context.Context, db *pgxpool.Pool, consumer string, ids []uuid.UUID) ([]uuid.UUID, error) {
	rows, err := db.Query(ctx, `
		SELECT id FROM unnest($2::uuid[]) AS s (id)
		WHERE NOT EXISTS (SELECT FROM inbox i WHERE i.consumer = $1 AND i.message_id = s.id OFFSET 0)
		  AND NOT EXISTS (SELECT FROM failed_messages f WHERE f.consumer = $1 AND f.message_id = s.id OFFSET 0)`, consumer, ids)
	if err != nil {
		return nil, err
	}

	return pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
}

// offsets proves that a committed offset never passes a message in hand. Each sample
// reads the offsets first and the database afterwards. Whatever a crash at the first
// read would have skipped must be recorded by the second.
type offsets struct {
	kafka *kafka
	db    *pgxpool.Pool

	// proven is the offset up to which all records are recorded.
	proven           map[place]int64
	samples, records int
	// passed describes the records in hand that an offset has passed.
	passed []string
}

// watch samples until ctx ends.
func (o *offsets) watch(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := o.sample(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("proving committed offsets: %w", err)
		}

		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}

	return nil
}

func (o *offsets) sample(ctx context.Context) error {
	committed, err := o.kafka.committed()
	if err != nil {
		return err
	}

	o.samples++

	below := map[string][]record{} // by topic

	for p, offset := range committed {
		if offset <= o.proven[p] {
			continue
		}

		list, err := o.kafka.records(ctx, p, o.proven[p], offset)
		if err != nil {
			return err
		}

		below[p.topic] = append(below[p.topic], list...)
		o.proven[p] = offset
	}

	for topic, list := range below {
		if err := o.prove(ctx, topic, list); err != nil {
			return err
		}
	}

	return nil
}

// prove looks up records below the committed offsets of a topic.
func (o *offsets) prove(ctx context.Context, topic string, list []record) error {
	ids := make([]uuid.UUID, len(list))
	at := make(map[uuid.UUID]record, len(list))

	for i, r := range list {
		ids[i], at[r.id] = r.id, r
	}

	missing, err := unrecorded(ctx, o.db, consumers[topic], ids)
	if err != nil {
		return err
	}

	o.records += len(list)

	for _, id := range missing {
		o.passed = append(o.passed, fmt.Sprintf("%s@%d (message %s)", at[id].place, at[id].offset, id))
	}

	return nil
}
