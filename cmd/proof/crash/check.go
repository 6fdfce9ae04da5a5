package crash

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// queries find what must not be, whatever the load. They repeat the service's knowledge on
// purpose: a checker that shares code with what it checks finds nothing.
var queries = []struct{ what, sql string }{
	{"stock does not add up", `SELECT product_id FROM stock WHERE supplied <> available + reserved + sold OR reserved <> 0 OR available < 0`},
	{"sold stock is not that of the completed orders", `
		SELECT product_id || ': ' || sold FROM stock s WHERE sold <> (
			SELECT count(*) FROM orders o WHERE status = 'completed' AND o.lines -> 0 ->> 'product_id' = s.product_id)`},
	{"a stream has a gap", `SELECT stream FROM events GROUP BY stream HAVING min(version) <> 1 OR max(version) <> count(*)`},
	{"an order is not at the end of its stream", `
		SELECT id FROM orders o WHERE version <> (SELECT max(version) FROM events WHERE stream = 'order-' || o.id)`},
	{"the provider has other money than the order's status says", `
		SELECT o.id || ' is ' || o.status || ', net ' || l.net || ' of ' || l.captures || ' captures' FROM orders o, LATERAL (
			SELECT count(*) AS captures, coalesce(sum(amount - refunded), 0) AS net FROM gateway_ledger g WHERE g.order_id = o.id AND transaction_id IS NOT NULL
		) AS l WHERE l.net <> CASE WHEN o.status = 'completed' THEN o.total_amount ELSE 0 END OR l.captures > 1`},
	{"a payment is not recorded as the provider has it", `
		SELECT coalesce(p.order_id, g.order_id) FROM (SELECT * FROM payments WHERE status <> 'declined') AS p
		FULL JOIN (SELECT * FROM gateway_ledger WHERE transaction_id IS NOT NULL) AS g ON g.transaction_id = p.transaction_id
		WHERE p.amount IS DISTINCT FROM g.amount OR (p.status = 'refunded') IS DISTINCT FROM (g.refunded > 0)`},
	{"a message is in the inbox of a consumer twice", `SELECT consumer || ' ' || message_id FROM inbox GROUP BY consumer, message_id HAVING count(*) > 1`},
	{"an event is from a message that is not in the inbox", `
		SELECT stream || ' ' || version FROM events e WHERE NOT EXISTS (SELECT FROM inbox i WHERE i.message_id = e.message_id)`},
	{"a notification was sent without its message in the inbox", `
		SELECT message_id::text FROM notifications n WHERE NOT EXISTS (SELECT FROM inbox i WHERE i.message_id = n.message_id AND i.consumer = 'notification.email')`},
	{"a row is left in the outbox", `SELECT seq || ' for ' || topic FROM outbox`},
	{"a key waits or is leased", `SELECT consumer || ' ' || key FROM failed_keys WHERE due_at IS NOT NULL OR leased_until > clock_timestamp()`},
	{"a message waits", `SELECT consumer || ' ' || message_id FROM failed_messages WHERE state = 'waiting'`},
	{"an update was missed", `SELECT user_id FROM user_misses`},
}

// checker compares the end of a run with its load.
type checker struct {
	db     *pgxpool.Pool
	load   *load
	broker broker
	mail   *mailServer
	// deaths is how often the process was killed.
	deaths int

	wrong []string
}

func (c *checker) add(what string, violations ...string) {
	for _, v := range violations {
		c.wrong = append(c.wrong, what+": "+v)
	}
}

// check returns everything that is wrong once all processes have ended.
func (c *checker) check(ctx context.Context) ([]string, error) {
	for _, q := range queries {
		found, err := lines(ctx, c.db, q.sql)
		if err != nil {
			return nil, fmt.Errorf("checking whether %s: %w", q.what, err)
		}

		c.add(q.what, found...)
	}

	behind, err := c.broker.backlog(ctx, true)
	c.add("a message is not acknowledged", behind...)

	for _, step := range []func(context.Context) error{c.orders, c.deliveries, c.users, c.inbox, c.failed, c.mails, c.results} {
		if err == nil {
			err = step(ctx)
		}
	}

	return c.wrong, err
}

// orders checks that each order has one of its histories, and that there are no others.
func (c *checker) orders(ctx context.Context) error {
	got, err := histories(ctx, c.db)
	if err != nil {
		return err
	}

	want := c.load.orders()

	for id, allowed := range want {
		if !slices.Contains(allowed, got[id]) {
			c.add("an order has the wrong history", fmt.Sprintf("%s: %s", id, got[id]))
		}
	}

	for id := range got {
		if want[id] == nil {
			c.add("an order is not part of the load", id)
		}
	}

	return nil
}

// histories returns the types of the events of each order.
func histories(ctx context.Context, db *pgxpool.Pool) (map[string]string, error) {
	all := map[string]string{}

	err := pairs(ctx, db, `
		SELECT substr(stream, 7), string_agg(type, ' ' ORDER BY version) FROM events WHERE stream LIKE 'order-%' GROUP BY stream`,
		func(id, types string) { all[id] = types })

	return all, err
}

// deliveries checks that each delivery was added once.
func (c *checker) deliveries(ctx context.Context) error {
	if len(c.load.histories) == 0 {
		return nil
	}

	var supplied int

	err := c.db.QueryRow(ctx, `SELECT coalesce(sum(supplied), 0) FROM stock WHERE product_id = 'plum'`).Scan(&supplied)
	if supplied != restocks*restocked {
		c.add("deliveries were not added once each", fmt.Sprintf("%d plums, expected %d", supplied, restocks*restocked))
	}

	return err
}

// users checks that each message of a user was applied once and in order.
func (c *checker) users(ctx context.Context) error {
	got := map[string][]string{}

	err := pairs(ctx, c.db, `SELECT substr(stream, 6), message_id::text FROM events WHERE stream LIKE 'user-%' ORDER BY stream, version`,
		func(user, id string) { got[user] = append(got[user], id) })

	for user, ids := range c.load.histories {
		if want := texts(ids); !slices.Equal(want, got[user]) {
			c.add("a user has the wrong history", fmt.Sprintf("%s: %s, expected %s", user, got[user], want))
		}

		delete(got, user)
	}

	for user := range got {
		c.add("a user is not part of the load", user)
	}

	return err
}

// inbox checks that each message that was sent was applied, or is among the failed.
func (c *checker) inbox(ctx context.Context) error {
	for _, o := range c.load.all() {
		var known bool

		err := c.db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM inbox WHERE message_id = $1) OR EXISTS (SELECT FROM failed_messages WHERE message_id = $1)`, o.id).Scan(&known)
		if err != nil {
			return err
		}

		if !known {
			c.add("a message was lost", fmt.Sprintf("%s %s", o.topic, o.key))
		}
	}

	return nil
}

// failed checks that the messages that no handler can apply are stopped as they were sent,
// and that no other message is.
func (c *checker) failed(ctx context.Context) error {
	left := map[string]int{}
	for _, payload := range c.load.stopped {
		left[payload]++
	}

	err := pairs(ctx, c.db, `SELECT convert_from(payload, 'UTF8'), consumer || ' ' || reason || ' ' || error FROM failed_messages WHERE state = 'stopped'`,
		func(payload, why string) {
			if left[payload]--; left[payload] < 0 {
				c.add("a message is stopped", why)
			}
		})

	for payload, n := range left {
		if n > 0 {
			c.add("a message is not stopped", payload)
		}
	}

	return err
}

// hops checks the topics between two handlers, which Kafka keeps.
func (c *checker) hops(ctx context.Context) error {
	if _, is := c.broker.(*kafka); !is {
		return nil
	}

	for _, topic := range []string{"payments.requested", "orders.completed", "payments.refund.requested", "notifications.email"} {
		published, err := c.broker.published(ctx, topic)
		if err != nil {
			return err
		}

		c.once(topic, published)
	}

	return nil
}

// once checks that nothing was published twice, unless a process died.
func (c *checker) once(topic string, published []record) {
	if c.deaths > 0 {
		return
	}

	seen := map[uuid.UUID]bool{}

	for _, r := range published {
		if seen[r.id] {
			c.add("a message was published twice, and no process died", topic+" "+r.id.String())
		}

		seen[r.id] = true
	}
}

// mails checks that each e-mail was sent, at most once more for each death.
func (c *checker) mails(ctx context.Context) error {
	sent := c.mail.copies()

	recorded, err := lines(ctx, c.db, `SELECT message_id::text FROM notifications WHERE channel = 'email' AND status = 'sent'`)
	if want := c.load.mails(); len(recorded) != want {
		c.add("e-mails are missing", fmt.Sprintf("%d of %d are recorded", len(recorded), want))
	}

	for _, id := range recorded {
		if n := sent[id]; n == 0 || n > 1+c.deaths {
			c.add("an e-mail has the wrong number of copies", fmt.Sprintf("%s: %d after %d deaths", id, n, c.deaths))
		}

		delete(sent, id)
	}

	for id := range sent {
		c.add("an e-mail was sent and not recorded", id)
	}

	return err
}

// mails is the number of e-mails: a welcome to each user, and one for each update.
func (l *load) mails() (n int) {
	for _, ids := range l.histories {
		n += len(ids)
	}

	return n
}

// results are the topics that the service only publishes, with the orders that must be on
// them and on no others.
var results = map[string]string{
	"orders.rejected":       `SELECT id FROM orders WHERE status IN ('inventory_unavailable', 'payment_failed')`,
	"orders.cancelled":      `SELECT id FROM orders WHERE status = 'cancelled'`,
	"orders.cancel.refused": `SELECT id FROM orders WHERE status = 'completed' AND id LIKE 'cancelled-%'`,
	"orders.expired":        `SELECT id FROM orders WHERE status = 'expired'`,
	"payments.refunded":     `SELECT substr(stream, 7) FROM events WHERE type = 'PaymentRefunded'`,
}

// results checks what was published: each result of an order once under one id, and the
// updates of each user in order. The outbox records each as it deletes it.
func (c *checker) results(ctx context.Context) error {
	_, isEmbedded := c.broker.(embedded)

	for topic, sql := range results {
		want, err := lines(ctx, c.db, sql)
		if err != nil {
			return err
		}

		recorded, err := lines(ctx, c.db, `SELECT message_id::text FROM published_messages WHERE topic = '`+topic+`'`)
		if err != nil {
			return err
		}

		if len(recorded) != len(want) {
			c.add("the outbox has published another number of results", fmt.Sprintf("%d on %s, expected %d", len(recorded), topic, len(want)))
		}

		if isEmbedded {
			continue
		}

		published, err := c.broker.published(ctx, topic)
		if err != nil {
			return err
		}

		c.compare(topic, want, recorded, published)
		c.once(topic, published)
	}

	if isEmbedded {
		return nil
	}

	published, err := c.broker.published(ctx, "user.profile.updated")
	if err != nil {
		return err
	}

	c.steps(published)
	c.once("user.profile.updated", published)

	return c.hops(ctx)
}

// compare compares what is on a topic with the orders that must be there.
func (c *checker) compare(topic string, want, recorded []string, published []record) {
	got, ids := []string{}, []string{}

	for _, r := range published {
		var p struct {
			OrderID string `json:"order_id"`
		}

		_ = json.Unmarshal(r.value, &p) // an order without an id is not expected
		got, ids = append(got, p.OrderID), append(ids, r.id.String())
	}

	for _, list := range []*[]string{&want, &recorded, &got, &ids} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}

	if !slices.Equal(want, got) {
		c.add("a topic has the wrong orders", fmt.Sprintf("%s: %s, expected %s", topic, got, want))
	}

	if !slices.Equal(recorded, ids) {
		c.add("a topic has the wrong messages", fmt.Sprintf("%s: %s, expected %s", topic, ids, recorded))
	}
}

// steps checks that the first copies of each user's updates are in order.
func (c *checker) steps(published []record) {
	seen, last := map[uuid.UUID]bool{}, map[string]int{}

	for _, r := range published {
		if seen[r.id] {
			continue
		}

		seen[r.id] = true

		var p struct {
			UserID  string `json:"user_id"`
			Changes struct {
				Step int `json:"step"`
			} `json:"changes"`
		}

		_ = json.Unmarshal(r.value, &p) // step 0 is not expected

		if p.Changes.Step != last[p.UserID]+1 {
			c.add("updates are not in order", fmt.Sprintf("%s: step %d follows step %d", p.UserID, p.Changes.Step, last[p.UserID]))
		}

		last[p.UserID] = p.Changes.Step
	}

	for user := range c.load.histories {
		if last[user] != updates {
			c.add("updates are not on their topic", fmt.Sprintf("%s: the last of %d is %d", user, updates, last[user]))
		}
	}
}

func lines(ctx context.Context, db *pgxpool.Pool, sql string) ([]string, error) {
	rows, err := db.Query(ctx, sql)
	if err != nil {
		return nil, err
	}

	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// pairs calls fn with each row of a query that returns two texts.
func pairs(ctx context.Context, db *pgxpool.Pool, sql string, fn func(a, b string)) error {
	rows, err := db.Query(ctx, sql)
	if err != nil {
		return err
	}

	var a, b string

	_, err = pgx.ForEachRow(rows, []any{&a, &b}, func() error {
		fn(a, b)

		return nil
	})

	return err
}

func texts(ids []uuid.UUID) []string {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = id.String()
	}

	return list
}

// join shortens a list for one line.
func join(list []string) string {
	const most = 3

	if len(list) > most {
		return strings.Join(list[:most], "; ") + fmt.Sprintf("; and %d more", len(list)-most)
	}

	return strings.Join(list, "; ")
}
