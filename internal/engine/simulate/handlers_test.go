package simulate_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

const (
	topicOrders  = "orders"
	topicResults = "results"
)

// change is a message of an aggregate. Bad ones are rejected until they are edited.
type change struct {
	ID   string `json:"id"`
	N    int    `json:"n"`
	Bad  bool   `json:"bad"`
	Fill string `json:"fill"`
}

func (change) Topic() string { return topicOrders }
func (c change) Key() string { return c.ID }

func (c change) Validate() error {
	if c.ID == "" {
		return errors.New("id: is missing")
	}

	return nil
}

// result is what the ledger publishes for each change.
type result struct {
	ID string `json:"id"`
	N  int    `json:"n"`
}

func (result) Topic() string   { return topicResults }
func (r result) Key() string   { return r.ID }
func (result) Validate() error { return nil }

// plan is what a consumer does with a message.
type plan struct {
	// failures is the number of attempts that fail, each with fault.
	failures int
	fault    string
	// takes is the time of an attempt.
	takes time.Duration
}

// attempt is an attempt of a consumer at a message. It returns the fault that is due.
func (w *world) attempt(ctx context.Context, consumer string, m event.Meta, bad bool) error {
	w.mu.Lock()
	p := w.plan(consumer, m.ID)
	t := tried{consumer, m.ID}
	w.tries[t]++
	tries := w.tries[t]
	w.mu.Unlock()

	if p.takes > 0 && backoff.Sleep(ctx, p.takes) != nil {
		return ctx.Err()
	}

	switch {
	case bad:
		return event.Reject(errors.New("bad: is true, expected false"))
	case tries > p.failures:
		return nil
	}

	switch p.fault {
	case "panic":
		panic("the handler panics")
	case "later":
		return event.Later(time.Second, errors.New("busy"))
	case "reject":
		return event.Reject(errors.New("the handler does not like it"))
	default:
		return fmt.Errorf("attempt %d fails", tries)
	}
}

// register adds the consumers: a ledger and a journal of the same topic, an audit of what
// the ledger publishes, and a mailer with an external effect.
func (w *world) register(r *consumer.Router) {
	consumer.OnBatch(r, "ledger", func(ctx context.Context, tx pgx.Tx, events []event.Event[change]) ([]event.Outgoing, error) {
		var out []event.Outgoing

		rejected := event.RejectSome{}

		for i, e := range events {
			switch err := w.attempt(ctx, "ledger", e.Meta, e.Payload.Bad); {
			case isRejected(err):
				rejected[i] = err

				continue
			case err != nil:
				return nil, err
			}

			if err := did(ctx, tx, "ledger", e.Payload, e.Meta, e.Payload.N); err != nil {
				return nil, err
			}

			next := e.Then(result{ID: e.Payload.ID, N: e.Payload.N})
			next.ID = event.ForeignID("result", e.ID.String()) // the same in each run of a seed
			out = append(out, next)
		}

		return out, rejected.Err()
	}, result{})

	if w.shared {
		consumer.On(r, "journal", func(ctx context.Context, tx pgx.Tx, e event.Event[change]) ([]event.Outgoing, error) {
			if err := w.attempt(ctx, "journal", e.Meta, e.Payload.Bad); err != nil {
				return nil, err
			}

			return nil, did(ctx, tx, "journal", e.Payload, e.Meta, e.Payload.N)
		})
	}

	consumer.On(r, "audit", func(ctx context.Context, tx pgx.Tx, e event.Event[result]) ([]event.Outgoing, error) {
		if err := w.attempt(ctx, "audit", e.Meta, false); err != nil {
			return nil, err
		}

		return nil, did(ctx, tx, "audit", e.Payload, e.Meta, e.Payload.N)
	})

	if !w.shared {
		return
	}

	consumer.OnEffect(r, "mailer", consumer.Effect[result, int]{
		Needs: func(event.Event[result]) string { return "mail" },
		Perform: func(ctx context.Context, e event.Event[result]) (int, error) {
			w.sleep(ctx, w.latency())

			if w.chance(w.faults.Load().mail) {
				return 0, event.Unavailable("mail", errors.New("no answer"))
			}

			return 1, w.attempt(ctx, "mailer", e.Meta, false)
		},
		Record: func(ctx context.Context, tx pgx.Tx, results []event.Effected[result, int]) ([]event.Outgoing, error) {
			for _, r := range results {
				if err := did(ctx, tx, "mailer", r.Payload, r.Meta, r.Payload.N); err != nil {
					return nil, err
				}
			}

			return nil, nil
		},
		Independent: w.independent,
	})
}

func isRejected(err error) bool {
	_, is := errors.AsType[*event.RejectError](err)

	return is
}

// did stores an effect.
func did(ctx context.Context, db postgres.Execer, consumer string, p event.Payload, m event.Meta, n int) error {
	_, err := db.Exec(ctx, `INSERT INTO effects (consumer, key, n, id) VALUES ($1, $2, $3, $4)`, consumer, p.Key(), int64(n), m.ID)

	return err
}

// consumersOf returns the consumers of a topic.
func (w *world) consumersOf(topic string) []string {
	switch {
	case topic == topicOrders && w.shared:
		return []string{"ledger", "journal"}
	case topic == topicOrders:
		return []string{"ledger"}
	case w.shared:
		return []string{"audit", "mailer"}
	default:
		return []string{"audit"}
	}
}

// malformed is a payload that no consumer can read.
func malformed(payload []byte) bool { return strings.HasPrefix(string(payload), "?") }
