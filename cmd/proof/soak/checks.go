package soak

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/cmd/proof/wire"
)

// report prints checks.
type report struct {
	out    io.Writer
	failed int
}

// that prints a check, which passes if there are no violations. It lists the first few
// violations.
func (r *report) that(what string, violations []string) {
	if len(violations) == 0 {
		fmt.Fprintf(r.out, "ok    %s\n", what)

		return
	}

	r.failed++

	fmt.Fprintf(r.out, "FAIL  %s: %d violations\n", what, len(violations))

	for _, v := range violations[:min(10, len(violations))] {
		fmt.Fprintf(r.out, "        %s\n", v)
	}
}

func (r *report) err() error {
	if r.failed > 0 {
		return fmt.Errorf("%d checks failed", r.failed)
	}

	return nil
}

// ended are the statuses in which the load's orders end.
const ended = `('completed', 'inventory_unavailable', 'payment_failed')`

// queries holds the database checks. Each query returns a description of each
// violation. The queries deliberately duplicate the service's knowledge: a checker that
// shared code with the service would find nothing.
var queries = []struct{ what, sql string }{
	{"every order has ended", `SELECT id || ' is ' || status FROM orders WHERE status NOT IN ` + ended},
	{"stock adds up", `SELECT product_id FROM stock WHERE supplied <> available + reserved + sold OR reserved <> 0 OR available < 0`},
	{"sold stock matches the completed orders", `
		SELECT s.product_id FROM stock s WHERE s.sold <> (
			SELECT coalesce(sum((l ->> 'quantity')::bigint), 0) FROM orders o, jsonb_array_elements(o.lines) AS l
			WHERE o.status = 'completed' AND l ->> 'product_id' = s.product_id)`},
	{"no stream has a gap", `SELECT stream FROM events GROUP BY stream HAVING min(version) <> 1 OR max(version) <> count(*)`},
	{"no step of an order happened twice", `
		SELECT stream || ' has ' || count(*) || ' ' || type FROM events WHERE stream LIKE 'order-%' GROUP BY stream, type HAVING count(*) > 1`},
	{"the history of each order leads to its state", `
		SELECT id || ' is ' || status || ' after ' || coalesce(steps, 'nothing') FROM orders o
		LEFT JOIN LATERAL (
			SELECT string_agg(type, ' ' ORDER BY version) AS steps, max(version) AS version FROM events WHERE stream = 'order-' || o.id
		) AS h ON true
		WHERE h.version IS DISTINCT FROM o.version OR h.steps IS DISTINCT FROM CASE status
			WHEN 'completed' THEN 'OrderCreated InventoryReserved OrderPaid OrderCompleted'
			WHEN 'payment_failed' THEN 'OrderCreated InventoryReserved PaymentFailed'
			WHEN 'inventory_unavailable' THEN 'OrderCreated InventoryUnavailable' END`},
	{"an order is captured if and only if it is completed, with its total", `
		SELECT o.id || ' is ' || o.status || ', its payment ' || coalesce(p.status, 'missing') FROM orders o LEFT JOIN payments p ON p.order_id = o.id
		WHERE (o.status = 'completed') <> coalesce(p.status = 'captured' AND p.amount = o.total_amount, false)`},
	{"the provider captured each order once, as recorded", `
		SELECT coalesce(l.order_id, p.order_id) FROM (
			SELECT order_id, count(*) AS captures, sum(amount - refunded) AS net FROM gateway_ledger WHERE transaction_id IS NOT NULL GROUP BY order_id
		) AS l FULL JOIN (SELECT order_id, amount FROM payments WHERE status = 'captured') AS p ON p.order_id = l.order_id
		WHERE l.captures IS DISTINCT FROM 1 OR l.net IS DISTINCT FROM p.amount`},
	{"a message is in the inbox of a consumer once", `SELECT consumer || ' ' || message_id FROM inbox GROUP BY consumer, message_id HAVING count(*) > 1`},
	{"every recorded event has its message in the inbox", `
		SELECT stream || ' ' || version FROM events e WHERE NOT EXISTS (SELECT FROM inbox i WHERE i.message_id = e.message_id)`},
	{"the outbox is empty", `SELECT seq || ' for ' || topic FROM outbox`},
	{"no message failed or waits", `SELECT consumer || ' ' || state || ' ' || reason || ' ' || error FROM failed_messages`},
	{"no key is held", `SELECT consumer || ' ' || key FROM failed_keys`},
	{"no update was missed", `SELECT user_id FROM user_misses`},
}

// checkDatabase runs all queries.
func checkDatabase(ctx context.Context, db *pgxpool.Pool, r *report) error {
	for _, q := range queries {
		violations, err := lines(ctx, db, q.sql)
		if err != nil {
			return fmt.Errorf("checking that %s: %w", q.what, err)
		}

		r.that(q.what, violations)
	}

	return nil
}

func lines(ctx context.Context, db *pgxpool.Pool, sql string) ([]string, error) {
	rows, err := db.Query(ctx, sql)
	if err != nil {
		return nil, err
	}

	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// checkLoad compares the database with what was sent: nothing lost, nothing added, and
// the messages of each user applied once and in order.
func checkLoad(ctx context.Context, db *pgxpool.Pool, want expected, r *report) error {
	orders, err := lines(ctx, db, `SELECT id FROM orders`)
	if err != nil {
		return err
	}

	r.that(grouped(len(want.orders))+" orders exist, and no others", differences(want.orders, orders))

	rows, err := db.Query(ctx, `SELECT substr(stream, 6), message_id FROM events WHERE stream LIKE 'user-%' ORDER BY stream, version`)
	if err != nil {
		return err
	}

	var (
		user string
		id   uuid.UUID
		got  = map[string][]uuid.UUID{}
	)

	if _, err := pgx.ForEachRow(rows, []any{&user, &id}, func() error {
		got[user] = append(got[user], id)

		return nil
	}); err != nil {
		return err
	}

	r.that(fmt.Sprintf("the histories of %d users have every message once and in order", len(want.histories)), histories(want.histories, got))

	for topic, ids := range want.ids {
		ids = slices.DeleteFunc(slices.Clone(ids), func(id uuid.UUID) bool { return id == uuid.Nil })

		lost, err := wire.Unrecorded(ctx, db, wire.Consumers[topic], ids)
		if err != nil {
			return err
		}

		r.that(fmt.Sprintf("%s ids sent to %s are in the inbox", grouped(len(ids)), topic), texts(lost))
	}

	return nil
}

// differences describes what is missing from got, or in it too often.
func differences(want, got []string) (list []string) {
	count := map[string]int{}
	for _, w := range want {
		count[w]--
	}

	for _, g := range got {
		count[g]++
	}

	for name, n := range count {
		switch {
		case n < 0:
			list = append(list, name+" is missing")
		case n > 0:
			list = append(list, name+" is too many")
		}
	}

	slices.Sort(list)

	return list
}

// histories describes the users whose messages were not applied once and in order.
func histories(want, got map[string][]uuid.UUID) (list []string) {
	for user, messages := range want {
		if !slices.Equal(messages, got[user]) {
			list = append(list, fmt.Sprintf("%s: %s", user, deviation(messages, got[user])))
		}
	}

	for user := range got {
		if _, known := want[user]; !known {
			list = append(list, user+": is not part of the load")
		}
	}

	slices.Sort(list)

	return list
}

// deviation describes the first difference between two sequences of messages.
func deviation(want, got []uuid.UUID) string {
	for i, id := range got {
		switch at := slices.Index(want, id); {
		case i < len(want) && want[i] == id:
		case at < 0:
			return fmt.Sprintf("event %d comes from an unknown message", i+1)
		case slices.Contains(got[:i], id):
			return fmt.Sprintf("message %d was applied twice", at+1)
		default:
			return fmt.Sprintf("message %d was applied as number %d", at+1, i+1)
		}
	}

	return fmt.Sprintf("%d of %d messages were applied", len(got), len(want))
}

func texts[T fmt.Stringer](list []T) []string {
	all := make([]string, len(list))
	for i, item := range list {
		all[i] = item.String()
	}

	return all
}

// steps describes the users whose updates were not all published, in order, on
// user.profile.updated. A message may be there more than once; only the first counts.
func steps(want map[string][]uuid.UUID, published []wire.Record) (list []string) {
	seen := map[uuid.UUID]bool{}
	last := map[string]int{}

	for _, r := range published {
		if seen[r.ID] {
			continue
		}

		seen[r.ID] = true

		var p struct {
			UserID  string `json:"user_id"`
			Changes struct {
				Step int `json:"step"`
			} `json:"changes"`
		}
		if err := json.Unmarshal(r.Value, &p); err != nil {
			list = append(list, fmt.Sprintf("%s@%d: %v", r.Place, r.Offset, err))

			continue
		}

		if p.Changes.Step != last[p.UserID]+1 {
			list = append(list, fmt.Sprintf("%s: step %d follows step %d", p.UserID, p.Changes.Step, last[p.UserID]))
		}

		last[p.UserID] = p.Changes.Step
	}

	for user, messages := range want {
		if last[user] != len(messages)-1 { // without the creation
			list = append(list, fmt.Sprintf("%s: the last step is %d of %d", user, last[user], len(messages)-1))
		}
	}

	slices.Sort(list)

	return list
}

// ordersOn returns the distinct orders on a topic.
func ordersOn(published []wire.Record) ([]string, error) {
	var (
		ids  []string
		errs []error
	)

	for _, r := range published {
		var p struct {
			OrderID string `json:"order_id"`
		}

		errs = append(errs, json.Unmarshal(r.Value, &p))
		ids = append(ids, p.OrderID)
	}

	slices.Sort(ids)

	return slices.Compact(ids), errors.Join(errs...)
}

// leaks returns the lines of a log that contain personal data.
func leaks(log string) (list []string) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, secret) {
			list = append(list, strings.TrimSpace(line))
		}
	}

	return list
}
