package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/account"
	"github.com/millracehq/millrace/internal/shop/analytics"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/user"
)

// load defines the messages of a run and how their completion is measured.
type load struct {
	name string
	// message returns the i-th message.
	message func(i int) event.Payload
	// prepare inserts the rows that n messages refer to; it may be nil.
	prepare func(ctx context.Context, s *site, n int) error
	// done counts the completed messages, cheaply.
	done string
	// elapsed is the time from the first commit after bench_start to the last.
	elapsed string
}

// price is the amount of every order.
var price = money.MustParse("9.99")

// orders returns a load of orders, each for one of several products. An order counts once
// it is sold.
func orders(products int) load {
	return load{
		name:    "orders",
		message: func(i int) event.Payload { return newOrder(i, products, "order-"+strconv.Itoa(i)) },
		prepare: func(ctx context.Context, s *site, _ int) error { return s.supply(ctx, products) },
		done:    `SELECT coalesce(sum(sold), 0)::bigint FROM stock`,
		elapsed: `SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin)) - min(created_at))::float8
			FROM orders WHERE created_at > (SELECT at FROM bench_start)`,
	}
}

func newOrder(i, products int, id string) fulfilment.OrderCreated {
	quantity := int64(1)
	amount := price

	return fulfilment.OrderCreated{Order: fulfilment.NewOrder{
		ID: id, ProductID: "sku_" + strconv.Itoa(i%products), Quantity: &quantity, TotalAmount: &amount,
	}}
}

// supply creates products that are never sold out.
func (s *site) supply(ctx context.Context, products int) error {
	_, err := s.pool.Exec(ctx, `INSERT INTO stock (product_id, supplied, available)
		SELECT 'sku_' || i, 1000000000, 1000000000 FROM generate_series(0, $1 - 1) AS i`, products)

	return err
}

// Each message about a user ends with a notification.
const (
	notified        = `SELECT count(*) FROM notifications`
	notifiedElapsed = `SELECT extract(epoch FROM (SELECT max(pg_xact_commit_timestamp(xmin)) FROM notifications)
		- (SELECT min(pg_xact_commit_timestamp(xmin)) FROM events WHERE recorded_at > (SELECT at FROM bench_start)))::float8`
)

// users returns a load of which half creates users and half updates existing ones.
func users() load {
	return load{name: "users", message: userMessage, prepare: prepareUsers, done: notified, elapsed: notifiedElapsed}
}

// legacyUsers is like users, with messages in the old format.
func legacyUsers() load {
	return load{name: "legacy users", message: legacyMessage, prepare: prepareUsers, done: notified, elapsed: notifiedElapsed}
}

// updates returns a load of updates to existing users.
func updates(users int) load {
	return load{
		name:    "updates",
		message: func(i int) event.Payload { return update(known(i%users), i) },
		prepare: func(ctx context.Context, s *site, n int) error {
			ids := make([]string, min(users, n))
			for i := range ids {
				ids[i] = known(i)
			}

			return createUsers(ctx, s, ids)
		},
		done: notified, elapsed: notifiedElapsed,
	}
}

// analyticsEvents returns a load of tracked events.
func analyticsEvents() load {
	return load{
		name: "analytics", message: trackedMessage,
		done:    `SELECT coalesce(sum(count), 0)::bigint FROM analytics_daily`,
		elapsed: `SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin)) - min(pg_xact_commit_timestamp(xmin)))::float8 FROM analytics_events`,
	}
}

// known returns the id of a user created before the run.
func known(i int) string { return "known-" + strconv.Itoa(i) }

func userMessage(i int) event.Payload {
	if i%2 == 0 {
		return account.UserCreated{User: account.NewUser{
			ID: "new-" + strconv.Itoa(i), Name: "User " + strconv.Itoa(i), Email: fmt.Sprintf("user%d@example.com", i),
		}}
	}

	return update(known(i), i)
}

// update returns the i-th update. It always changes something; otherwise there would be
// no notification.
func update(id string, i int) event.Payload {
	city := json.RawMessage(strconv.Quote("City " + strconv.Itoa(i)))

	return account.UserUpdated{UserID: id, Updates: user.Update{Properties: user.Properties{"city": city}}}
}

// raw is a payload as encoded by another system.
type raw struct {
	topic, key string
	body       map[string]any
}

func (r raw) Topic() string                { return r.topic }
func (r raw) Key() string                  { return r.key }
func (raw) Validate() error                { return nil }
func (r raw) MarshalJSON() ([]byte, error) { return json.Marshal(r.body) }

func legacyMessage(i int) event.Payload {
	if i%2 == 0 {
		id := "new-" + strconv.Itoa(i)

		return raw{account.TopicUserEvents, id, map[string]any{
			"userId": id, "userName": "User " + strconv.Itoa(i), "email": fmt.Sprintf("user%d@example.com", i), "action": "create",
		}}
	}

	return raw{account.TopicUserEvents, known(i), map[string]any{"userId": known(i), "action": "update", "city": "Berlin"}}
}

func trackedMessage(i int) event.Payload {
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

	return createUsers(ctx, s, ids)
}

// createUsers creates users without messages.
func createUsers(ctx context.Context, s *site, ids []string) error {
	return changeUsers(ctx, s, ids, func(users *user.Service, tx pgx.Tx, some []string) (*user.Session, error) {
		session, err := users.Open(ctx, tx, some, some)
		if err != nil {
			return nil, err
		}

		for _, id := range some {
			created := user.Created{UserID: id, Name: "User " + id, Email: id + "@example.com"}
			if err := session.Record(id, event.NewID(), []eventstore.Data{created}); err != nil {
				return nil, err
			}
		}

		return session, nil
	})
}

// changeUsers calls record for one chunk of users at a time, and saves each session in
// its own transaction.
func changeUsers(ctx context.Context, s *site, ids []string, record func(*user.Service, pgx.Tx, []string) (*user.Session, error)) error {
	const chunk = 2000

	users := user.NewService(user.DefaultConfig(), s.pool)

	for some := range slices.Chunk(ids, chunk) {
		err := postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
			session, err := record(users, tx, some)
			if err != nil {
				return err
			}

			return session.Save(ctx)
		})
		if err != nil {
			return err
		}
	}

	return nil
}
