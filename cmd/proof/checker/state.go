package checker

import (
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// state is what the service has left in Postgres.
type state struct {
	orders map[string]order
	stock  map[string]stock
	// streams holds the events by stream, in order of their versions.
	streams   map[string][]event
	payments  map[string]payment
	inbox     map[seen]int
	causes    map[seen]*uuid.UUID
	outbox    []pending
	failed    []failure
	keys      []key
	paused    []string
	users     map[string]user
	misses    []uuid.UUID
	notices   map[uuid.UUID]notice
	tracked   []tracked
	daily     map[string]int64
	published []published
}

type order struct {
	ID, Status string
	Version    int
	// Total is in cents.
	Total int64
	Lines []line
}

type line struct {
	Product  string `json:"product_id"`
	Quantity int64  `json:"quantity"`
}

type stock struct {
	Product                             string
	Supplied, Available, Reserved, Sold int64
}

type event struct {
	Stream  string
	Version int
	Type    string
	Data    []byte
	Message uuid.UUID
}

type payment struct {
	Order, Status string
	Transaction   *string
}

// seen identifies an inbox row.
type seen struct {
	consumer string
	message  uuid.UUID
}

type pending struct {
	Seq        int64
	Topic, Key string
	Refused    *string
	Available  *string
}

type failure struct {
	ID                          int64
	State, Consumer, Topic, Key string
	Message                     uuid.UUID
	Headers                     []byte
	Payload                     []byte
	Edited                      []byte
	Reason, Error               string
	Resolution                  *string
}

type key struct {
	Consumer, Key string
	Due, Leased   *time.Time
}

type user struct {
	ID          string
	Version     int
	Name, Email *string
	Properties  []byte
}

type notice struct {
	Message                 uuid.UUID
	User                    string
	Channel, Status, Answer string
}

type tracked struct {
	Message uuid.UUID
	Event   string
}

type published struct {
	Topic     string
	ID        uuid.UUID
	Causation *uuid.UUID
}

func rows[T any](ctx context.Context, db pgx.Tx, into *[]T, sql string) error {
	r, err := db.Query(ctx, sql)
	if err != nil {
		return err
	}

	*into, err = pgx.CollectRows(r, pgx.RowToStructByPos[T])

	return err
}

func column[T any](ctx context.Context, db pgx.Tx, into *[]T, sql string) error {
	r, err := db.Query(ctx, sql)
	if err != nil {
		return err
	}

	*into, err = pgx.CollectRows(r, pgx.RowTo[T])

	return err
}

func byName[T any](list []T, name func(T) string) map[string]T {
	m := make(map[string]T, len(list))
	for _, item := range list {
		m[name(item)] = item
	}

	return m
}

// inboxRow is a row of the inbox.
type inboxRow struct {
	Consumer  string
	Message   uuid.UUID
	Causation *uuid.UUID
}

// orderRow is a row of orders.
type orderRow struct {
	ID, Status string
	Version    int
	Total      int64
	Lines      []byte
}

// read reads everything in one snapshot.
func read(ctx context.Context, db *pgxpool.Pool) (*state, error) {
	s := &state{orders: map[string]order{}, streams: map[string][]event{}, inbox: map[seen]int{}, causes: map[seen]*uuid.UUID{}, notices: map[uuid.UUID]notice{}, daily: map[string]int64{}}

	return s, pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		for _, fn := range []func(context.Context, pgx.Tx) error{s.readOrders, s.readMessages, s.readOthers} {
			if err := fn(ctx, tx); err != nil {
				return err
			}
		}

		return nil
	})
}

func (s *state) readOrders(ctx context.Context, tx pgx.Tx) error {
	var (
		orders   []orderRow
		products []stock
		events   []event
		payments []payment
	)

	for _, err := range []error{
		rows(ctx, tx, &orders, `SELECT id, status, version, (total_amount * 100)::bigint, lines FROM orders`),
		rows(ctx, tx, &products, `SELECT product_id, supplied, available, reserved, sold FROM stock`),
		rows(ctx, tx, &events, `SELECT stream, version, type, data, message_id FROM events ORDER BY stream, version`),
		rows(ctx, tx, &payments, `SELECT order_id, status, transaction_id FROM payments`),
	} {
		if err != nil {
			return err
		}
	}

	for _, o := range orders {
		known := order{ID: o.ID, Status: o.Status, Version: o.Version, Total: o.Total}
		if err := json.Unmarshal(o.Lines, &known.Lines); err != nil {
			return err
		}

		s.orders[o.ID] = known
	}

	for _, e := range events {
		s.streams[e.Stream] = append(s.streams[e.Stream], e)
	}

	s.stock = byName(products, func(p stock) string { return p.Product })
	s.payments = byName(payments, func(p payment) string { return p.Order })

	return nil
}

func (s *state) readMessages(ctx context.Context, tx pgx.Tx) error {
	var inbox []inboxRow

	for _, err := range []error{
		rows(ctx, tx, &inbox, `SELECT consumer, message_id, causation_id FROM inbox`),
		rows(ctx, tx, &s.outbox, `SELECT seq, topic, key, refused, available_at::text FROM outbox`),
		rows(ctx, tx, &s.failed, `
			SELECT id, state, consumer, topic, key, message_id, headers, payload, edited, reason, error, resolution FROM failed_messages`),
		rows(ctx, tx, &s.keys, `SELECT consumer, key, due_at, leased_until FROM failed_keys`),
		rows(ctx, tx, &s.published, `SELECT topic, message_id, causation_id FROM published_messages`),
		column(ctx, tx, &s.paused, `SELECT consumer FROM paused_consumers`),
		column(ctx, tx, &s.misses, `SELECT message_id FROM user_misses`),
	} {
		if err != nil {
			return err
		}
	}

	for _, r := range inbox {
		s.inbox[seen{r.Consumer, r.Message}]++
		s.causes[seen{r.Consumer, r.Message}] = r.Causation
	}

	return nil
}

// count is how often an event was counted.
type count struct {
	Event string
	Count int64
}

func (s *state) readOthers(ctx context.Context, tx pgx.Tx) error {
	var (
		users   []user
		notices []notice
		daily   []count
	)

	for _, err := range []error{
		rows(ctx, tx, &users, `SELECT id, version, name, email, properties FROM users`),
		rows(ctx, tx, &notices, `SELECT message_id, user_id, channel, status, answer FROM notifications`),
		rows(ctx, tx, &s.tracked, `SELECT message_id, event FROM analytics_events`),
		rows(ctx, tx, &daily, `SELECT event, sum(count)::bigint FROM analytics_daily GROUP BY event`),
	} {
		if err != nil {
			return err
		}
	}

	s.users = byName(users, func(u user) string { return u.ID })

	for _, n := range notices {
		s.notices[n.Message] = n
	}

	for _, d := range daily {
		s.daily[d.Event] = d.Count
	}

	return nil
}
