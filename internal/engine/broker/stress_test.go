package broker_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// hotStep is a step on a topic of its own.
type hotStep struct{ step }

var hotTopic = brokertest.Topic()

func (hotStep) Topic() string { return hotTopic }

// trial determines what the handler does with the messages in a stress test.
type trial struct {
	pool *pgxpool.Pool

	mu sync.Mutex
	// errs holds the errors that the next attempts at a step return.
	errs map[step][]error
	// rejected counts the steps that end in a rejection.
	rejected int
}

var errContention = &pgconn.PgError{Code: "40001", Message: "could not serialize access"}

func newTrial(pool *pgxpool.Pool, seed uint64, keys, each int) *trial {
	r := rand.New(rand.NewPCG(seed, seed))
	tr := &trial{pool: pool, errs: map[step][]error{}}

	for key := range keys {
		for number := range each {
			s := step{ID: fmt.Sprintf("key-%d", key), Number: number}

			switch n := r.IntN(100); {
			case n < 4:
				tr.errs[s] = []error{event.Reject(errors.New("refused")), event.Reject(errors.New("refused"))}
				tr.rejected++
			case n < 8: // occasionally longer than the quick retries
				for range 1 + r.IntN(6) {
					tr.errs[s] = append(tr.errs[s], errors.New("not yet"))
				}
			case n < 11:
				tr.errs[s] = []error{errContention}
			}
		}
	}

	return tr
}

// register adds a consumer whose handler fails as planned.
func (tr *trial) register(r *consumer.Router) {
	consumer.On(r, "trial", func(ctx context.Context, tx pgx.Tx, e event.Event[hotStep]) ([]event.Outgoing, error) {
		if err := tr.next(e.Payload.step); err != nil {
			return nil, err
		}

		_, err := tx.Exec(ctx, `INSERT INTO steps (id, number) VALUES ($1, $2)`, e.Payload.ID, e.Payload.Number)

		return nil, err
	})
}

// next returns an attempt's error. A rejection is repeated, because a batch that is split
// up retries its messages.
func (tr *trial) next(s step) error {
	tr.mu.Lock()
	defer tr.mu.Unlock()

	errs := tr.errs[s]
	if len(errs) == 0 {
		return nil
	}

	if _, rejected := errors.AsType[*event.RejectError](errs[0]); !rejected {
		tr.errs[s] = errs[1:]
	}

	return errs[0]
}

// holdInserts keeps all steps from being applied until release is called.
func holdInserts(t *testing.T, pool *pgxpool.Pool) (release func()) {
	t.Helper()

	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	if _, err := tx.Exec(t.Context(), `LOCK TABLE steps IN SHARE MODE`); err != nil {
		t.Fatal(err)
	}

	return func() {
		if err := tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// appendSteps writes steps with each key to the outbox.
func appendSteps(t *testing.T, pool *pgxpool.Pool, keys, first, end int) {
	t.Helper()

	err := postgres.InTx(t.Context(), pool, func(tx pgx.Tx) error {
		var events []event.Outgoing

		for number := first; number < end; number++ {
			for key := range keys {
				events = append(events, event.Start(hotStep{step{ID: fmt.Sprintf("key-%d", key), Number: number}}))
			}
		}

		return outbox.Append(t.Context(), tx, events)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// hotKeys checks that a consumer applies many messages with few keys exactly once and in
// order, whatever fails. It also checks that several messages with the same key share a
// transaction.
func (h harness) hotKeys(t *testing.T) {
	t.Helper()

	const keys, each = 3, 50

	pool, seed := pgtest.New(t), rand.Uint64()
	t.Log("seed", seed)

	if _, err := pool.Exec(t.Context(), `CREATE TABLE steps (n bigint GENERATED ALWAYS AS IDENTITY, id text, number int)`); err != nil {
		t.Fatal(err)
	}

	tr := newTrial(pool, seed, keys, each)
	e := h.start(t, pool, tr.register)
	count := func(sql string) int { return pgtest.Value[int](t, pool, `SELECT count(*)::int FROM `+sql) }

	appendSteps(t, pool, keys, 0, each)
	pgtest.Eventually(t, "all are applied or stopped", func() bool {
		return count(`steps`) >= keys*each-tr.rejected && count(`failed_messages WHERE state = 'stopped'`) >= tr.rejected
	})

	want := keys*each - tr.rejected

	if h.durable { // the embedded broker's lanes apply one message per key at a time
		sharesTransactions(t, pool, keys, each)

		want += keys * more
	}

	e.stop()

	if n := count(`steps`); n != want {
		t.Errorf("%d steps were applied, expected %d", n, want)
	}

	if n := count(`(SELECT number - lag(number) OVER (PARTITION BY id ORDER BY n) AS step FROM steps) AS s WHERE step <= 0`); n != 0 {
		t.Errorf("%d steps are out of order, or were applied twice", n)
	}

	if n := count(`failed_messages WHERE state <> 'stopped'`); n != 0 {
		t.Errorf("%d messages still wait", n)
	}
}

// more is the number of further steps per key that sharesTransactions publishes.
const more = 10

// sharesTransactions publishes steps that do not fail, while nothing can be applied. It
// then checks that several steps of a key are applied in one transaction.
func sharesTransactions(t *testing.T, pool *pgxpool.Pool, keys, first int) {
	t.Helper()

	release := holdInserts(t, pool)

	appendSteps(t, pool, keys, first, first+more)
	pgtest.Eventually(t, "all are published", func() bool { return pgtest.Value[int](t, pool, `SELECT count(*)::int FROM outbox`) == 0 })
	release()
	pgtest.Eventually(t, "all are applied", func() bool {
		return pgtest.Value[int](t, pool, `SELECT count(*)::int FROM steps WHERE number >= $1`, first) >= keys*more
	})

	shared := pgtest.Value[int](t, pool, `
		SELECT max(n)::int FROM (SELECT count(*) AS n FROM steps WHERE number >= $1 GROUP BY id, xmin::text) AS s`, first)
	if shared < 2 {
		t.Error("no two messages of a key were applied in one transaction")
	}
}
