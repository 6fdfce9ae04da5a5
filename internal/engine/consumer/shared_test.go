package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// sender returns an effect that needs "mail", which is available while up is true. It
// records the notes that it sent in the table sent.
func sender(up *atomic.Bool) consumer.Effect[note, string] {
	return consumer.Effect[note, string]{
		Needs: func(event.Event[note]) string { return "mail" },
		Perform: func(_ context.Context, e event.Event[note]) (string, error) {
			if !up.Load() {
				return "", event.Unavailable("mail", errors.New("connection refused"))
			}

			return e.Payload.Text, nil
		},
		Record: func(ctx context.Context, tx pgx.Tx, results []event.Effected[note, string]) ([]event.Outgoing, error) {
			for _, e := range results {
				if _, err := tx.Exec(ctx, `INSERT INTO sent (id, text) VALUES ($1, $2)`, e.Payload.ID, *e.Result); err != nil {
					return nil, err
				}
			}

			return nil, nil
		},
	}
}

func TestAConsumerWaitingForADependencyDoesNotStopAnotherOfItsTopic(t *testing.T) {
	t.Parallel()

	pool := newPool(t)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE sent (n bigint GENERATED ALWAYS AS IDENTITY, id text, text text)`); err != nil {
		t.Fatal(err)
	}

	var up atomic.Bool

	r := start(t, pool, func(router *consumer.Router) {
		consumer.On(router, "writer", write)
		consumer.OnEffect(router, "sender", sender(&up))
	})

	const keys, notes = 4, 10
	for i := range notes {
		for key := range keys {
			r.send(message(fmt.Sprint("key-", key), fmt.Sprint(i)))
		}
	}

	count := func(table string) int { return pgtest.Value[int](t, pool, `SELECT count(*)::int FROM `+table) }

	pgtest.Eventually(t, "the other consumer has applied everything", func() bool { return count("notes") == keys*notes })
	pgtest.Eventually(t, "all messages wait", func() bool {
		return pgtest.Value[int](t, pool, `SELECT count(*)::int FROM failed_messages WHERE consumer = 'sender' AND attempts = 0`) == keys*notes
	})

	if n := count("sent"); n != 0 {
		t.Errorf("%d notes were sent while the dependency was unavailable", n)
	}

	up.Store(true)
	pgtest.Eventually(t, "everything is sent", func() bool { return count("sent") == keys*notes })

	for _, table := range []string{"notes", "sent"} {
		for key := range keys {
			got := pgtest.Value[string](t, pool, `SELECT string_agg(text, ' ' ORDER BY n) FROM `+table+` WHERE id = $1`, fmt.Sprint("key-", key))
			if got != "0 1 2 3 4 5 6 7 8 9" {
				t.Errorf("%s of key-%d are in the order %s", table, key, got)
			}
		}
	}
}
