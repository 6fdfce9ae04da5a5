package consumer_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	watermill "github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/broker/window"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/line"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// sharing are two replicas that get the messages of a key in turn, as from a RabbitMQ queue
// without x-single-active-consumer.
type sharing struct {
	*testing.T

	pool       *pgxpool.Pool
	one, other *handled
	// trying tells of the first attempt on message 1, which ends after proceed.
	trying, proceed chan struct{}
}

func share(t *testing.T, fails func(n note) error) *sharing {
	t.Helper()

	s := &sharing{T: t, pool: newPool(t), one: &handled{}, other: &handled{}, trying: make(chan struct{}), proceed: make(chan struct{})}
	first := sync.OnceFunc(func() { close(s.trying); <-s.proceed })

	for _, replica := range []*handled{s.one, s.other} {
		replica.handingTo(t, s.pool, func(router *consumer.Router) {
			consumer.On(router, "writer", func(ctx context.Context, tx pgx.Tx, e event.Event[note]) ([]event.Outgoing, error) {
				if e.Payload.Text == "1" {
					first()
				}

				if err := fails(e.Payload); err != nil {
					return nil, err
				}

				return write(ctx, tx, e)
			})
		}, func(c *consumer.Config) { c.RetryInterval, c.ParkAttempts = time.Millisecond, 0 })
		replica.run(t)
	}

	return s
}

// passing has one replica try message 1 while the other settles message 2.
func (s *sharing) passing() {
	s.Helper()

	earlier, end := s.one.hand(s.T, message("a", "1"))
	s.Cleanup(end)
	<-s.trying

	later, end := s.other.hand(s.T, message("a", "2"))
	s.Cleanup(end)
	pgtest.Eventually(s, "the later message is settled", func() bool { return answered(later, (*watermill.Message).Acked) })
	close(s.proceed)
	pgtest.Eventually(s, "the earlier message is settled", func() bool { return answered(earlier, (*watermill.Message).Acked) })
}

func (s *sharing) texts() string {
	return pgtest.Value[string](s, s.pool, `SELECT coalesce(string_agg(text, ' ' ORDER BY n), '') FROM notes`)
}

// Nobody knows yet that the first message will stop, so the later one is not recorded as
// overtaking it: a requeue needs no word.
func TestAMessageAppliedByAnotherReplicaDuringQuickRetriesIsNotRecordedAsOvertaking(t *testing.T) {
	t.Parallel()

	var repaired atomic.Bool

	s := share(t, func(n note) error {
		if n.Text == "1" && !repaired.Load() {
			return errBroken
		}

		return nil
	})
	s.passing()

	if got := s.texts(); got != "2" {
		t.Errorf("applied %q", got)
	}

	repaired.Store(true)

	failures := failed.NewStore(failed.DefaultConfig(), s.pool)
	if out, err := failures.Requeue(t.Context(), failed.Filter{}, ann, failed.Pace{}, s.one.router.Check); err != nil || out.Done != 1 || out.Refused != 0 {
		t.Errorf("requeued: %+v, %v", out, err)
	}

	pgtest.Eventually(t, "the first is applied after the later one", func() bool { return s.texts() == "2 1" })
}

// Early messages are tried in the order in which they were parked.
func TestEarlyMessagesOfTwoReplicasAreParkedInTheOrderOfTheirAttempts(t *testing.T) {
	t.Parallel()

	var there atomic.Bool

	s := share(t, func(note) error {
		if there.Load() {
			return nil
		}

		return event.Await(errors.New("not there yet"), "others")
	})
	s.passing()
	there.Store(true)
	pgtest.Eventually(t, "both are applied, the later one first", func() bool { return s.texts() == "2 1" })
}

// The verdict on a message counts only once those ahead of it in its line have their
// fates, so each rejection rolls back a batch, with all that is behind it.
func TestEachRejectedMessageOfALineRollsBackThoseBehindIt(t *testing.T) {
	t.Parallel()

	var (
		rolledBack, settled atomic.Int64
		entered, proceed    = make(chan struct{}), make(chan struct{})
		h                   = &handled{}
		messages            = []event.Message{message("a", "bad"), message("a", "bad"), message("a", "bad"), message("a", "good")}
	)

	h.handingTo(t, newPool(t), func(router *consumer.Router) {
		consumer.OnBatch(router, "writer", func(_ context.Context, _ pgx.Tx, events []event.Event[note]) ([]event.Outgoing, error) {
			if events[0].Payload.ID == "other" { // holds up the batch while the line arrives
				close(entered)
				<-proceed

				return nil, nil
			}

			rejected := event.RejectSome{}

			for i, e := range events {
				if e.Payload.Text == "bad" {
					rejected[i] = event.Reject(errors.New("text: is not wanted"))
				}
			}

			if len(rejected) > 0 {
				rolledBack.Add(1)
			}

			return nil, rejected.Err()
		})
	})
	h.run(t)

	_, end := h.hand(t, message("other", "1"))
	defer end()
	<-entered

	w := window.New(line.Telling(t.Context()), window.NewBudget(100, window.MaxBytes), h.out, window.Acks{UpTo: settled.Store})

	for i, m := range messages {
		w.Add(watermill.NewMessage(m.ID.String(), m.Payload), "a", int64(i+1))
	}

	close(proceed)
	pgtest.Eventually(t, "all are settled", func() bool { return settled.Load() == int64(len(messages)) })

	if n := rolledBack.Load(); n != 3 {
		t.Errorf("%d transactions were rolled back, expected one for each rejected message", n)
	}
}
