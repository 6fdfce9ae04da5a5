package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/account"
	"github.com/millracehq/millrace/internal/shop/analytics"
	"github.com/millracehq/millrace/internal/shop/user"
)

// load is the messages of a run and how their completion is measured.
type load struct {
	name string
	// message is the i-th message of n.
	message func(i, n int) event.Payload
	// prepare inserts what the messages refer to; it may be nil.
	prepare func(ctx context.Context, s *site, n int) error
	// done counts the completed messages, cheaply.
	done string
	// elapsed is the time from the first commit to the last.
	elapsed string
}

// known returns the id of a user who exists before the run.
func known(i int) string { return "known-" + strconv.Itoa(i) }

// Half of the messages create users, the others update existing ones. Each causes a
// notification; the last notification ends the run.
const (
	usersDone    = `SELECT count(*) FROM notifications`
	usersElapsed = `SELECT extract(epoch FROM (SELECT max(pg_xact_commit_timestamp(xmin)) FROM notifications)
		- (SELECT min(pg_xact_commit_timestamp(xmin)) FROM events WHERE recorded_at > (SELECT at FROM bench_start)))::float8`
	trackedDone    = `SELECT coalesce(sum(count), 0)::bigint FROM analytics_daily`
	trackedElapsed = `SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin)) - min(pg_xact_commit_timestamp(xmin)))::float8 FROM analytics_events`
)

func loads() []load {
	return []load{
		{name: "users", message: userMessage, prepare: prepareUsers, done: usersDone, elapsed: usersElapsed},
		{name: "legacy", message: legacyMessage, prepare: prepareUsers, done: usersDone, elapsed: usersElapsed},
		{name: "analytics", message: trackedMessage, done: trackedDone, elapsed: trackedElapsed},
	}
}

func userMessage(i, _ int) event.Payload {
	if i%2 == 0 {
		return account.UserCreated{User: account.NewUser{
			ID: "new-" + strconv.Itoa(i), Name: "User " + strconv.Itoa(i), Email: fmt.Sprintf("user%d@example.com", i),
		}}
	}

	return account.UserUpdated{UserID: known(i), Updates: user.Update{Properties: user.Properties{"city": json.RawMessage(`"Berlin"`)}}}
}

// raw is a payload as another system encodes it.
type raw struct {
	topic, key string
	body       map[string]any
}

func (r raw) Topic() string                { return r.topic }
func (r raw) Key() string                  { return r.key }
func (raw) Validate() error                { return nil }
func (r raw) MarshalJSON() ([]byte, error) { return json.Marshal(r.body) }

func legacyMessage(i, _ int) event.Payload {
	if i%2 == 0 {
		id := "new-" + strconv.Itoa(i)

		return raw{account.TopicUserEvents, id, map[string]any{
			"userId": id, "userName": "User " + strconv.Itoa(i), "email": fmt.Sprintf("user%d@example.com", i), "action": "create",
		}}
	}

	return raw{account.TopicUserEvents, known(i), map[string]any{"userId": known(i), "action": "update", "city": "Berlin"}}
}

func trackedMessage(i, _ int) event.Payload {
	return analytics.Tracked{
		Event: "event_" + strconv.Itoa(i%20), Timestamp: event.Time{Time: time.Now()},
		UserID: "user-" + strconv.Itoa(i), Properties: json.RawMessage(`{"page":"/home","referrer":"https://example.com"}`),
	}
}

// prepareUsers creates the users that the run updates.
func prepareUsers(ctx context.Context, s *site, n int) error {
	var ids []string
	for i := 1; i < n; i += 2 {
		ids = append(ids, known(i))
	}

	if err := createUsers(ctx, s, ids); err != nil {
		return err
	}

	_, err := s.pool.Exec(ctx, `CREATE TABLE bench_start AS SELECT clock_timestamp() AS at`)

	return err
}

// createUsers creates users without messages.
func createUsers(ctx context.Context, s *site, ids []string) error {
	const chunk = 2000

	users := user.NewService(user.DefaultConfig(), s.pool)

	for len(ids) > 0 {
		some := ids[:min(chunk, len(ids))]
		ids = ids[len(some):]

		err := postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
			session, err := users.Open(ctx, tx, some, some)
			if err != nil {
				return err
			}

			for _, id := range some {
				created := user.Created{UserID: id, Name: "User " + id, Email: id + "@example.com"}
				if err := session.Record(id, event.NewID(), []eventstore.Data{created}); err != nil {
					return err
				}
			}

			return session.Save(ctx)
		})
		if err != nil {
			return err
		}
	}

	return nil
}

// domain measures a load that is on Kafka before the service starts.
func (l *lab) domain(ctx context.Context, d load, role string, n int) (figures, error) {
	s, err := l.newSite(ctx, broker.Kafka, 1)
	if err != nil {
		return nil, err
	}
	defer s.close()

	if d.prepare != nil {
		if err := d.prepare(ctx, s, n); err != nil {
			return nil, err
		}
	}

	from, err := s.newSource(ctx)
	if err != nil {
		return nil, err
	}

	err = from.preload(ctx, n, func(i int) event.Payload { return d.message(i, n) })
	from.close()

	if err != nil {
		return nil, err
	}

	before := s.cpu()

	child, err := s.start(ctx, role)
	if err != nil {
		return nil, err
	}

	err = until(ctx, func() (done bool, err error) {
		var count int
		err = s.pool.QueryRow(ctx, d.done).Scan(&count)

		return count >= n, err
	})
	if err != nil {
		return nil, err
	}

	batch, used := s.meanBatch(ctx), s.cpu().since(before)

	peak, own, err := child.stop()
	if err != nil {
		return nil, err
	}

	var elapsed float64
	err = s.pool.QueryRow(ctx, d.elapsed).Scan(&elapsed)

	return figures{
		"messages/s": float64(n) / elapsed, "batch": batch, "RSS MB": peak, "CPU ms/message": (own + used.postgres + used.broker) / float64(n) * 1000,
		"service": own / float64(n) * 1000, "postgres": used.postgres / float64(n) * 1000, "broker": used.broker / float64(n) * 1000,
	}, err
}

// rebuild measures the rebuild of a projection from a large store while users are
// being created.
func (l *lab) rebuild(ctx context.Context, events int) (figures, error) {
	s, err := l.newSite(ctx, broker.Embedded, 1)
	if err != nil {
		return nil, err
	}
	defer s.close()

	// One creation and nine updates for each user.
	const each = 10

	ids := make([]string, events/each)
	for i := range ids {
		ids[i] = known(i)
	}

	if err := s.fillStore(ctx, ids, each); err != nil {
		return nil, err
	}

	child, err := s.start(ctx, "serve")
	if err != nil {
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

	if _, _, err := child.stop(); err != nil {
		return nil, err
	}

	return figures{"rebuild s": took.Seconds(), "events": float64(events), "events/s": float64(events) / took.Seconds(), "messages meanwhile": float64(n)}, nil
}

// steadyUsers publishes a new user every five milliseconds until stop is called, which
// returns their number.
func steadyUsers(ctx context.Context, from *source) (stop func() int) {
	traffic, cancel := context.WithCancel(ctx)
	sent := make(chan int, 1)

	go func() {
		n := 0

		for ; traffic.Err() == nil; n++ {
			if err := from.publish(ctx, userMessage(2*n, 0)); err != nil {
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

	const chunk = 2000

	users := user.NewService(user.DefaultConfig(), s.pool)

	for len(ids) > 0 {
		some := ids[:min(chunk, len(ids))]
		ids = ids[len(some):]

		err := postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
			session, err := users.Open(ctx, tx, some, nil)
			if err != nil {
				return err
			}

			for n := range each - 1 {
				for _, id := range some {
					updated := user.NameUpdated{UserID: id, NewName: "Name " + strconv.Itoa(n)}
					if err := session.Record(id, event.NewID(), []eventstore.Data{updated}); err != nil {
						return err
					}
				}
			}

			return session.Save(ctx)
		})
		if err != nil {
			return err
		}
	}

	return nil
}
