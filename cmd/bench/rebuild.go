package main

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/shop/account"
	"github.com/millracehq/millrace/internal/shop/user"
)

// rebuild measures the rebuild of a projection from a large store while users are
// being created.
func (l *lab) rebuild(ctx context.Context, _ bool) (figures, error) {
	s, err := l.newSite(ctx, broker.Embedded)
	if err != nil {
		return nil, err
	}
	defer s.close()

	// One creation and nine updates for each user.
	const each = 10

	ids := make([]string, l.events/each)
	for i := range ids {
		ids[i] = known(i)
	}

	if err := s.fillStore(ctx, ids, each); err != nil {
		return nil, err
	}

	if err := s.start(ctx, serveRole, 1); err != nil {
		return nil, err
	}

	from, err := s.newSource(ctx)
	if err != nil {
		return nil, err
	}

	stop := steadyUsers(ctx, from)

	projector := eventstore.NewProjector(s.pool, account.Projections(), l.logger)
	started := time.Now()
	err = projector.Rebuild(ctx, "users", func(int64, int64) {})
	took := time.Since(started)
	n := stop()

	if err != nil {
		return nil, err
	}

	// No user may be missing, whether created before or during the rebuild.
	err = until(ctx, func() (done bool, err error) {
		err = s.pool.QueryRow(ctx, `SELECT count(*) = $1 FROM users`, len(ids)+n).Scan(&done)

		return done, err
	})
	if err != nil {
		return nil, err
	}

	if _, err := s.stop(); err != nil {
		return nil, err
	}

	return figures{
		rebuildSeconds: took.Seconds(), rows: float64(l.events), perSecond: float64(l.events) / took.Seconds(), meanwhile: float64(n),
	}, nil
}

// steadyUsers publishes a new user every five milliseconds until stop is called. stop
// returns the number of users.
func steadyUsers(ctx context.Context, from *source) (stop func() int) {
	traffic, cancel := context.WithCancel(ctx)
	sent := make(chan int, 1)

	go func() {
		n := 0

		for ; traffic.Err() == nil; n++ {
			if err := from.publish(ctx, userMessage(2*n)); err != nil {
				break
			}

			time.Sleep(5 * time.Millisecond) //nolint:forbidigo // a steady rate
		}
		sent <- n
	}()

	return func() int {
		cancel()

		return <-sent
	}
}

func (s *site) fillStore(ctx context.Context, ids []string, each int) error {
	if err := createUsers(ctx, s, ids); err != nil {
		return err
	}

	return changeUsers(ctx, s, ids, func(users *user.Service, tx pgx.Tx, some []string) (*user.Session, error) {
		session, err := users.Open(ctx, tx, some, nil)
		if err != nil {
			return nil, err
		}

		for n := range each - 1 {
			for _, id := range some {
				updated := user.NameUpdated{UserID: id, NewName: "Name " + strconv.Itoa(n)}
				if err := session.Record(id, event.NewID(), []eventstore.Data{updated}); err != nil {
					return nil, err
				}
			}
		}

		return session, nil
	})
}
