package audit

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/invariant"
)

// eventType is a type of event in the stream of an order.
type eventType struct {
	name string
	// status is the order's status after the event, or "" if it stays the same.
	status string
}

// eventTypes repeats the state machine of package order on purpose, as far as
// the checks need it: a bug there must not hide itself. The index of a type is
// its code, and the position of its bit in a set of types.
var eventTypes = []eventType{
	{"OrderCreated", "created"},
	{"InventoryReserved", "inventory_reserved"},
	{"InventoryUnavailable", "inventory_unavailable"},
	{"OrderPaid", "paid"},
	{"PaymentFailed", "payment_failed"},
	{"OrderCompleted", "completed"},
	{"OrderExpired", "expired"},
	{"OrderCancelled", "cancelled"},
	{"PaymentRefunded", ""},
	{"PaymentCapturedLate", ""},
	{"PaymentRefundFailed", ""},
}

// statusTypes is the number of types that change the status; they come first.
const statusTypes = 8

// bits returns a set of types as an SQL number.
func bits(names ...string) string {
	sum := 0

	for _, name := range names {
		for code, t := range eventTypes {
			if t.name == name {
				sum |= 1 << code
			}
		}
	}

	return fmt.Sprint(sum)
}

// codeOf returns an SQL expression for the code of a type, or NULL.
func codeOf(column string) string {
	var b strings.Builder

	b.WriteString("CASE " + column)

	for code, t := range eventTypes {
		fmt.Fprintf(&b, " WHEN '%s' THEN %d", t.name, code)
	}

	b.WriteString(" END")

	return b.String()
}

// statuses returns an SQL array of statuses by code.
func statuses() string {
	quoted := make([]string, statusTypes)
	for code := range quoted {
		quoted[code] = "'" + eventTypes[code].status + "'"
	}

	return "ARRAY[" + strings.Join(quoted, ", ") + "]"
}

// orders checks each order against its stream and its payment.
func orders() invariant.Source {
	terminal := bits("InventoryUnavailable", "PaymentFailed", "OrderCompleted", "OrderExpired", "OrderCancelled")
	paid, refunded, reserved, failed := bits("OrderPaid"), bits("PaymentRefunded"), bits("InventoryReserved"), bits("PaymentRefundFailed")

	return invariant.Source{
		Name:  "orders",
		Count: `SELECT count(*) FROM orders`,
		Rows: `
			SELECT coalesce(o.id, e.id, p.order_id) AS id, o.status, o.version, o.total_amount, o.currency,
			       e.version AS stream_version, e.types, (` + statuses() + `)[e.last + 1] AS folded,
			       e.steps = bit_count((e.types & ` + fmt.Sprint(1<<statusTypes-1) + `)::bit(16)) AS once, e.paid, e.refunded,
			       p.captures, p.captured, p.refunds, p.currency AS payment_currency, p.order_id IS NOT NULL AS charged,
			       o.updated_at < now() - @older::interval AS old, h.key IS NOT NULL AS pending
			FROM orders o
			FULL JOIN (
				SELECT substr(stream, 7) AS id, max(version) AS version, bit_or(1 << code) AS types,
				       count(*) FILTER (WHERE code < ` + fmt.Sprint(statusTypes) + `) AS steps,
				       count(*) FILTER (WHERE 1 << code & ` + bits("OrderPaid", "PaymentCapturedLate") + ` <> 0) AS paid,
				       count(*) FILTER (WHERE 1 << code & ` + refunded + ` <> 0) - count(*) FILTER (WHERE 1 << code & ` + failed + ` <> 0) AS refunded,
				       max(version * 16 + code) FILTER (WHERE code < ` + fmt.Sprint(statusTypes) + `) % 16 AS last
				FROM (SELECT stream, version, ` + codeOf("type") + ` AS code FROM events WHERE stream LIKE 'order-%' OFFSET 0) AS coded
				GROUP BY stream
			) AS e ON e.id = o.id
			FULL JOIN (
				SELECT order_id, min(currency) AS currency, count(*) FILTER (WHERE status = 'captured') AS captures,
				       sum(amount) FILTER (WHERE status = 'captured') AS captured, count(*) FILTER (WHERE status = 'refunded') AS refunds
				FROM payments GROUP BY order_id
			) AS p ON p.order_id = coalesce(o.id, e.id)
			LEFT JOIN (` + invariant.Pending + `) AS h ON h.key = o.id`,
		Checks: []invariant.Check{
			{
				Name:  "in-flight",
				Means: "Every order is in a final state, or in progress, or has a stopped message.",
				Advice: "Inspect the order with `millrace orders show ID` and its messages with `millrace trace`. If its topic has a backlog on the broker, wait. " +
					"Otherwise publish the missing follow-up message again: no message is applied twice.",
				Fault: `CASE WHEN status IN ('created', 'inventory_reserved', 'paid') AND old AND NOT pending
					THEN format('has been %s for too long, and no message about it is pending', status) END`,
			},
			{
				Name:  "captures",
				Means: "An order is paid at most once. Paid and completed orders have a capture of the total; all other final states have none.",
				Advice: "Ask the payment provider about the order. A capture of an order that ended unpaid must be refunded: " +
					"requeue the stopped messages of the order, or refund it through the provider.",
				Fault: `CASE
					WHEN captures > 1 THEN format('has %s captures', captures)
					WHEN charged AND status IS NULL THEN 'has a payment, but there is no such order'
					WHEN status IN ('paid', 'completed') AND captures IS DISTINCT FROM 1 THEN format('is %s without a capture', status)
					WHEN status IN ('paid', 'completed') AND (captured <> total_amount OR payment_currency <> currency)
						THEN format('is %s, but %s %s was captured instead of %s %s', status, trim_scale(captured), payment_currency, trim_scale(total_amount), currency)
					WHEN status IN ('payment_failed', 'inventory_unavailable', 'expired', 'cancelled') AND captures > 0 AND old AND NOT pending
						THEN format('is %s, but %s %s was captured and not refunded', status, trim_scale(captured), payment_currency) END`,
			},
			{
				Name:   "compensation",
				Means:  "Each step of an order happens once, and is compensated at most once and only if it happened.",
				Advice: "Read the history with `millrace orders show ID`. It cannot be changed: correct stock or payment by hand, and report a bug.",
				Fault: `CASE
					WHEN NOT once THEN 'has the same event twice'
					WHEN bit_count((types & ` + terminal + `)::bit(16)) > 1 THEN 'has ended more than once'
					WHEN types & ` + terminal + ` <> 0 AND types & ` + bits("OrderPaid", "InventoryReserved") + ` <> 0 AND folded IN ('created', 'inventory_reserved', 'paid') THEN 'continued after its end'
					WHEN types & ` + bits("OrderPaid", "PaymentFailed") + ` <> 0 AND types & ` + reserved + ` = 0 THEN 'was charged, but stock was never reserved'
					WHEN types & ` + bits("OrderCompleted") + ` <> 0 AND types & ` + paid + ` = 0 THEN 'was completed, but never paid'
					WHEN types & ` + bits("InventoryUnavailable") + ` <> 0 AND types & ` + reserved + ` <> 0 THEN 'has stock both reserved and unavailable'
					WHEN refunded > paid THEN 'was refunded more often than it was paid'
					WHEN types & ` + bits("PaymentRefunded", "PaymentRefundFailed", "PaymentCapturedLate") + ` = ` + refunded + ` AND coalesce(refunds, 0) = 0 THEN 'was refunded, but its payment is not marked as refunded'
					WHEN types & ` + refunded + ` = 0 AND refunds > 0 THEN 'has a refunded payment, but no refund in its history' END`,
			},
			{
				Name:  "fold",
				Means: "The row of an order equals the fold of its stream.",
				Advice: "`--repair` sets a row's status and version to those of its stream. An order without a stream, or a stream without an order, needs a restore: " +
					"the two are written in one transaction.",
				Fault: `CASE
					WHEN status IS NULL AND stream_version IS NOT NULL THEN 'has a stream but no row'
					WHEN status IS NOT NULL AND stream_version IS NULL THEN 'has a row but no stream'
					WHEN types & ` + bits("OrderCreated") + ` = 0 THEN 'has a stream that does not begin with OrderCreated'
					WHEN status <> folded THEN format('is %s, but its stream says %s', status, folded)
					WHEN version <> stream_version THEN format('is at version %s, but its stream at %s', version, stream_version) END`,
				Repair: repairOrder,
			},
		},
	}
}

// contents checks orders against the event that created them.
func contents() invariant.Source {
	return invariant.Source{
		Name:  "order contents",
		Count: `SELECT count(*) FROM orders`,
		Rows: `
			SELECT o.id, o.total_amount, o.currency, o.lines, e.data
			FROM orders o JOIN events e ON e.stream = 'order-' || o.id AND e.version = 1 AND e.type = 'OrderCreated'`,
		Checks: []invariant.Check{{
			Name:   "contents",
			Means:  "Orders have the total, currency and lines that they were created with.",
			Advice: "The stream is right: find out who changed the row, then correct it by hand from `millrace events show order-ID`.",
			Fault: `CASE
				WHEN (data ->> 'total_amount')::numeric <> total_amount OR data ->> 'currency' <> currency
					THEN format('has the total %s %s, but was created with %s %s', trim_scale(total_amount), currency, data ->> 'total_amount', data ->> 'currency')
				WHEN data -> 'lines' <> lines THEN 'has different lines than it was created with' END`,
		}},
	}
}

// repairOrder sets the row of an order to the state of its stream.
func repairOrder(ctx context.Context, tx pgx.Tx, id string) (string, error) {
	var (
		status, folded             string
		version, last, events, low int
	)

	err := tx.QueryRow(ctx, `SELECT status, version FROM orders WHERE id = $1 FOR NO KEY UPDATE`, id).Scan(&status, &version)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", invariant.Refuse("it has no row: restore it")
	}

	if err != nil {
		return "", err
	}

	err = tx.QueryRow(ctx, `
		SELECT coalesce((`+statuses()+`)[max(version * 16 + code) FILTER (WHERE code < $2) % 16 + 1], ''), coalesce(max(version), 0), count(*)::int, coalesce(min(version), 0)
		FROM (SELECT version, `+codeOf("type")+` AS code FROM events WHERE stream = $1) AS coded`, "order-"+id, statusTypes).
		Scan(&folded, &last, &events, &low)

	switch {
	case err != nil:
		return "", err
	case folded == "" || low != 1 || events != last:
		return "", invariant.Refuse("its stream is missing or has gaps: restore it")
	case folded == status && last == version:
		return "", nil
	}

	_, err = tx.Exec(ctx, `UPDATE orders SET status = $2, version = $3, updated_at = now() WHERE id = $1`, id, folded, last)

	return fmt.Sprintf("status %s -> %s, version %d -> %d", status, folded, version, last), err
}
