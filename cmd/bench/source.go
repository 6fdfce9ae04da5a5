package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// source publishes messages as another system would.
type source struct {
	site *site
	conn *broker.Conn
}

func (s *site) newSource(ctx context.Context) (*source, error) {
	if s.cfg.Broker.Kind == broker.Embedded {
		return &source{site: s}, nil
	}

	conn, err := broker.New(s.cfg.Broker, s.lab.logger)
	if err != nil {
		return nil, err
	}

	return &source{site: s, conn: conn}, conn.Connect(ctx, topics())
}

func (s *source) close() {
	if s.conn != nil {
		_ = s.conn.Close()
	}
}

// publish returns once the messages are stored.
func (s *source) publish(ctx context.Context, payloads ...event.Payload) error {
	if s.conn == nil {
		return s.append(ctx, payloads)
	}

	for _, p := range payloads {
		payload, err := event.Encode(p)
		if err != nil {
			return err
		}

		msg := message.NewMessage(event.NewID().String(), payload)
		msg.Metadata[event.HeaderKey] = p.Key()

		if err := s.conn.Publisher().Publish(p.Topic(), msg); err != nil {
			return err
		}
	}

	return nil
}

func (s *source) append(ctx context.Context, payloads []event.Payload) error {
	messages := make([]event.Outgoing, len(payloads))
	for i, p := range payloads {
		messages[i] = event.Start(p)
	}

	err := postgres.InTx(ctx, s.site.pool, func(tx pgx.Tx) error { return outbox.Append(ctx, tx, messages) })
	if err != nil {
		return err
	}

	_, err = s.site.pool.Exec(ctx, `SELECT pg_notify($1, '')`, outbox.Channel)

	return err
}

// publishAll publishes a range of messages as fast as it can. Messages with the same key
// keep their order only if there is just one key.
func (s *source) publishAll(ctx context.Context, from, to int, message func(i int) event.Payload) error {
	const workers = 64

	var (
		chunk = min(500, max(1, (to-from)/workers))
		wait  sync.WaitGroup
		first atomic.Pointer[error]
		next  = make(chan int)
	)

	for range workers {
		wait.Go(func() {
			for from := range next {
				var payloads []event.Payload
				for i := from; i < min(from+chunk, to); i++ {
					payloads = append(payloads, message(i))
				}

				if err := s.publish(ctx, payloads...); err != nil {
					first.CompareAndSwap(nil, &err)
				}
			}
		})
	}

	for ; from < to; from += chunk {
		next <- from
	}

	close(next)
	wait.Wait()

	if err := first.Load(); err != nil {
		return *err
	}

	return nil
}

// A producer of more than busyRate messages a second sends what is due every linger.
const (
	busyRate = 1000
	linger   = 10 * time.Millisecond
)

// publishSteadily publishes n orders at a rate, whether or not earlier ones are complete.
// An id contains the time at which its order was due.
func (s *source) publishSteadily(ctx context.Context, n, rate, products int) error {
	var (
		wait  sync.WaitGroup
		first atomic.Pointer[error]
		begin = time.Now()
		pause time.Duration
	)

	if rate > busyRate {
		pause = linger
	}

	dueAt := func(i int) time.Time { return begin.Add(time.Duration(i) * time.Second / time.Duration(rate)) }

	for i := 0; i < n; {
		time.Sleep(time.Until(dueAt(i).Add(pause)))

		var due []event.Payload

		for now := time.Now(); i < n && !dueAt(i).After(now); i++ {
			due = append(due, newOrder(i, products, fmt.Sprintf("%d-%d", dueAt(i).UnixMicro(), i)))
		}

		wait.Go(func() {
			if err := s.publish(ctx, due...); err != nil {
				first.CompareAndSwap(nil, &err)
			}
		})
	}

	wait.Wait()

	if err := first.Load(); err != nil {
		return *err
	}

	return nil
}
