package audit

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// check is one invariant.
type check struct {
	name, means, advice string
	// from names the source whose rows it judges.
	from string
	// fault is an SQL expression over a row of the source: what is wrong with
	// it, or NULL.
	fault string
	// confirm is a query that returns those of the ids $1 for which the fault
	// still stands; for checks of what may be on its way. Empty for others.
	confirm string
	// repair mends one violation in tx and says what it did, nothing if nothing
	// was wrong any more. It is nil where there is no safe answer.
	repair func(ctx context.Context, tx pgx.Tx, id string) (what string, err error)
}

// source is a set of rows, read once for all checks that judge them.
type source struct {
	// name says what is examined.
	name string
	// needs are tables without which it cannot be read.
	needs []string
	// count is a query of how many rows are examined.
	count string
	// rows is a query whose rows have an id of type text. Its parameters are
	// @older, @retention and @ledger.
	rows func(schema) string
}

// kind is a type of event in the stream of an order.
type kind struct {
	event string
	// status is that of the order after it, empty if it does not change it.
	status string
}

// kinds repeats the state machine of package order on purpose, as far as a
// check needs it: an error there must not hide itself. The place of a kind is
// its bit.
var kinds = []kind{
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
}

// changing is how many kinds change the status: the first of them.
const changing = 8

// bit is the bit of a type of event, as an SQL number.
func bit(events ...string) string {
	sum := 0

	for _, event := range events {
		for i, k := range kinds {
			if k.event == event {
				sum |= 1 << i
			}
		}
	}

	return fmt.Sprint(sum)
}

// codeOf is an SQL expression: the place of the event's type among kinds, NULL
// for others.
func codeOf(column string) string {
	var b strings.Builder

	b.WriteString("CASE " + column)

	for i, k := range kinds {
		fmt.Fprintf(&b, " WHEN '%s' THEN %d", k.event, i)
	}

	b.WriteString(" END")

	return b.String()
}

// statuses is an SQL array of the statuses by the place of their event.
func statuses() string {
	quoted := make([]string, changing)
	for i := range quoted {
		quoted[i] = "'" + kinds[i].status + "'"
	}

	return "ARRAY[" + strings.Join(quoted, ", ") + "]"
}

// Sources.
const (
	orderSource      = "orders"
	contentSource    = "order contents"
	streamSource     = "other streams"
	stockSource      = "products"
	chargeSource     = "payments"
	ledgerSource     = "captures"
	userSource       = "users"
	projectionSource = "projections"
	outboxSource     = "outbox rows"
	inboxSource      = "inbox rows"
	effectSource     = "effects"
	poisonSource     = "poison entries"
	parkedSource     = "parked keys"
)

// inHand is a query of the keys for which something is still to come: a
// message that waits, or an entry in the poison queue that nobody has decided.
func inHand(s schema) string {
	open := ""
	if s.has("poison.resolution") {
		open = " WHERE resolution IS NULL"
	}

	keys := `SELECT key FROM outbox UNION SELECT key FROM poison` + open
	if s.has("parked") {
		keys += ` UNION SELECT key FROM parked`
	}

	return keys
}

func sources() []source {
	return []source{
		{
			name:  orderSource,
			count: `SELECT count(*) FROM orders`,
			rows: func(s schema) string {
				return `
				SELECT coalesce(o.id, e.id, p.order_id) AS id, o.status, o.version, o.total_amount, o.currency,
				       e.version AS stream_version, e.events, e.low, e.kinds, (` + statuses() + `)[e.last + 1] AS folded,
				       e.steps = bit_count((e.kinds & ` + fmt.Sprint(1<<changing-1) + `)::bit(16)) AS once, e.paid, e.refunded,
				       p.captures, p.captured, p.refunds, p.currency AS payment_currency, p.order_id IS NOT NULL AS charged,
				       o.updated_at < now() - @older::interval AS old, h.key IS NOT NULL AS in_hand
				FROM orders o
				FULL JOIN (
					SELECT substr(stream, 7) AS id, count(*) AS events, min(version) AS low, max(version) AS version, bit_or(1 << code) AS kinds,
					       count(*) FILTER (WHERE code < ` + fmt.Sprint(changing) + `) AS steps,
					       count(*) FILTER (WHERE 1 << code & ` + bit("OrderPaid", "PaymentCapturedLate") + ` <> 0) AS paid,
					       count(*) FILTER (WHERE 1 << code & ` + bit("PaymentRefunded") + ` <> 0) AS refunded,
					       max(version * 16 + code) FILTER (WHERE code < ` + fmt.Sprint(changing) + `) % 16 AS last
					FROM (SELECT stream, version, ` + codeOf("type") + ` AS code FROM events WHERE stream LIKE 'order-%' OFFSET 0) AS coded
					GROUP BY stream
				) AS e ON e.id = o.id
				FULL JOIN (
					SELECT order_id, min(currency) AS currency, count(*) FILTER (WHERE status = 'captured') AS captures,
					       sum(amount) FILTER (WHERE status = 'captured') AS captured, count(*) FILTER (WHERE status = 'refunded') AS refunds
					FROM payments GROUP BY order_id
				) AS p ON p.order_id = coalesce(o.id, e.id)
				LEFT JOIN (` + inHand(s) + `) AS h ON h.key = o.id`
			},
		},
		{
			name:  contentSource,
			count: `SELECT count(*) FROM orders`,
			rows: func(schema) string {
				return `
				SELECT o.id, o.total_amount, o.currency, o.lines, e.data
				FROM orders o JOIN events e ON e.stream = 'order-' || o.id AND e.version = 1 AND e.type = 'OrderCreated'`
			},
		},
		{
			name:  streamSource,
			count: `SELECT count(*) FROM events WHERE version = 1 AND stream NOT LIKE 'order-%'`,
			rows: func(schema) string {
				return `
				SELECT stream AS id, count(*) AS events, min(version) AS low, max(version) AS high FROM events
				WHERE stream NOT LIKE 'order-%'
				GROUP BY stream HAVING count(*) <> max(version) OR min(version) <> 1`
			},
		},
		{
			name:  stockSource,
			count: `SELECT count(*) FROM stock`,
			rows: func(schema) string {
				return `
				SELECT coalesce(s.product_id, o.product_id) AS id, s.supplied, s.available, s.reserved, s.sold,
				       coalesce(o.held, 0) AS held, coalesce(o.completed, 0) AS completed
				FROM stock s
				FULL JOIN (
					SELECT l.product_id, sum(l.quantity) FILTER (WHERE o.status <> 'completed') AS held,
					       sum(l.quantity) FILTER (WHERE o.status = 'completed') AS completed
					FROM orders o CROSS JOIN LATERAL jsonb_to_recordset(o.lines) AS l (product_id text, quantity bigint)
					WHERE o.status IN ('inventory_reserved', 'paid', 'completed')
					GROUP BY l.product_id
				) AS o ON o.product_id = s.product_id`
			},
		},
		{
			name:  chargeSource,
			count: `SELECT count(*) FROM payments`,
			rows: func(schema) string {
				return `
				SELECT transaction_id AS id, count(*) AS uses, min(order_id) AS one, max(order_id) AS other
				FROM payments WHERE transaction_id IS NOT NULL
				GROUP BY transaction_id HAVING count(*) > 1`
			},
		},
		{
			name:  ledgerSource,
			count: `SELECT count(*) FROM audit_ledger`,
			rows: func(s schema) string {
				return `
				SELECT coalesce(p.order_id, l.order_id) AS id, l.transaction_id AS theirs, l.order_id, l.amount::numeric AS their_amount, l.currency AS their_currency, l.refunded::numeric,
				       p.transaction_id AS ours, p.status, p.amount, p.currency,
				       l.at > read.at - @older::interval OR o.updated_at > read.at - @older::interval OR h.key IS NOT NULL AS under_way,
				       p.recorded_at > read.at - @older::interval OR p.recorded_at < read.at - @ledger::interval + interval '1 day' AS beyond
				FROM audit_ledger l
				FULL JOIN (SELECT * FROM payments WHERE status IN ('captured', 'refunded')) AS p ON p.transaction_id = l.transaction_id
				LEFT JOIN orders o ON o.id = coalesce(p.order_id, l.order_id)
				LEFT JOIN (` + inHand(s) + `) AS h ON h.key = o.id
				CROSS JOIN audit_ledger_read AS read`
			},
		},
		{
			name:  userSource,
			count: `SELECT count(*) FROM users`,
			rows: func(schema) string {
				return `
				SELECT coalesce(u.id, e.id) AS id, u.version, e.version AS stream_version
				FROM users u
				FULL JOIN (
					SELECT substr(stream, 6) AS id, max(version) AS version FROM events
					WHERE stream LIKE 'user-%' AND position <= coalesce((SELECT position FROM projections WHERE name = 'users'), 0)
					GROUP BY stream
				) AS e ON e.id = u.id`
			},
		},
		{
			name:  projectionSource,
			count: `SELECT count(*) FROM projections`,
			rows: func(schema) string {
				return `
				SELECT name AS id, position, (SELECT recorded_at FROM events WHERE events.position > p.position ORDER BY events.position LIMIT 1) AS waits_since
				FROM projections p`
			},
		},
		{
			name:  outboxSource,
			count: `SELECT count(*) FROM outbox`,
			rows: func(schema) string {
				return `
				SELECT seq::text AS id, topic, created_at, available_at FROM outbox
				WHERE available_at IS NULL AND created_at < now() - @older::interval OR available_at < now() - @older::interval`
			},
		},
		{
			name:  inboxSource,
			count: `SELECT count(*) FROM inbox`,
			rows: func(schema) string {
				return `
				SELECT consumer || ' ' || message_id AS id, day, CASE WHEN get_byte(bytes, 6) >> 4 = 7
					THEN date '1970-01-01' + ((((get_byte(bytes, 0)::bigint << 40) + (get_byte(bytes, 1)::bigint << 32) + (get_byte(bytes, 2)::bigint << 24)
					     + (get_byte(bytes, 3) << 16) + (get_byte(bytes, 4) << 8) + get_byte(bytes, 5)) / 86400000)::int)
					ELSE date '1970-01-01' END AS of_id
				FROM (SELECT consumer, message_id, day, uuid_send(message_id) AS bytes FROM inbox OFFSET 0) AS i`
			},
		},
		{
			name:  effectSource,
			count: `SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM notifications)`,
			rows: func(schema) string {
				return `
				SELECT e.message_id || ' ' || e.stream AS id, 'event' AS effect
				FROM events e
				WHERE e.recorded_at > now() - @retention::interval AND e.type <> 'UserErased'
				  AND NOT EXISTS (SELECT FROM inbox i WHERE i.message_id = e.message_id)
				UNION ALL
				SELECT n.message_id::text, 'notification' FROM notifications n
				WHERE n.sent_at > now() - @retention::interval
				  AND NOT EXISTS (SELECT FROM inbox i WHERE i.message_id = n.message_id AND i.consumer = 'notification.send')`
			},
		},
		{
			name:  poisonSource,
			count: `SELECT count(*) FROM poison`,
			rows: func(schema) string {
				return `
				SELECT id::text AS id, fingerprint, ('x' || encode(substr(sha256(payload), 1, 8), 'hex'))::bit(64)::bigint AS of_payload,
				       jsonb_typeof(headers) AS headers
				FROM poison`
			},
		},
		{
			name:  parkedSource,
			needs: []string{"parked", "parked_keys"},
			count: `SELECT count(*) FROM parked_keys`,
			rows: func(s schema) string {
				paused := `false`
				if s.has("paused_consumers") {
					paused = `EXISTS (SELECT FROM paused_consumers c WHERE c.consumer = k.consumer)`
				}

				return `
				SELECT coalesce(k.consumer, p.consumer) || ' ' || coalesce(k.key, p.key) AS id, k.due_at, p.waiting, ` + paused + ` AS paused
				FROM parked_keys k
				FULL JOIN (SELECT consumer, key, count(*) AS waiting FROM parked GROUP BY consumer, key) AS p
					ON p.consumer = k.consumer AND p.key = k.key`
			},
		},
	}
}

// terminal are the events that end an order.
var terminal = bit("InventoryUnavailable", "PaymentFailed", "OrderCompleted", "OrderExpired", "OrderCancelled")

func checks() []check {
	return []check{
		{
			name: "in-flight", from: orderSource,
			means: "Every order is in a terminal state, or on its way, or has an open poison entry.",
			advice: "Look at the order with `millrace orders show ID` and at its messages with `millrace trace`. If its topic has a backlog on the broker, wait; " +
				"else publish the message again that should have followed: what was applied is not applied twice.",
			fault: `CASE WHEN status IN ('created', 'inventory_reserved', 'paid') AND old AND NOT in_hand
				THEN 'is ' || status || ' for long, and no message about it waits anywhere' END`,
		},
		{
			name: "captures", from: orderSource,
			means: "An order is paid at most once; paid and completed mean captured of the total; any other end means that nothing was kept.",
			advice: "Ask the payment provider what became of the order. Money that was kept for an order that ended otherwise has to be given back: " +
				"requeue what is in the poison queue for the order, or refund it at the provider.",
			fault: `CASE
				WHEN captures > 1 THEN 'has ' || captures || ' captures'
				WHEN charged AND status IS NULL THEN 'has a payment, and there is no such order'
				WHEN status IN ('paid', 'completed') AND captures IS DISTINCT FROM 1 THEN 'is ' || status || ' without a capture'
				WHEN status IN ('paid', 'completed') AND (captured <> total_amount OR payment_currency <> currency)
					THEN format('is %s, and %s %s was captured in place of %s %s', status, trim_scale(captured), payment_currency, trim_scale(total_amount), currency)
				WHEN status IN ('payment_failed', 'inventory_unavailable', 'expired', 'cancelled') AND captures > 0 AND old AND NOT in_hand
					THEN format('is %s, and %s %s was captured and not given back', status, trim_scale(captured), payment_currency) END`,
		},
		{
			name: "compensation", from: orderSource,
			means:  "Each step of an order happens once, is compensated at most once, and only if it was done.",
			advice: "Read the history with `millrace orders show ID`. It cannot be changed: correct stock or payment by hand, and report the case as a bug.",
			fault: `CASE
				WHEN NOT once THEN 'has an event twice'
				WHEN bit_count((kinds & ` + terminal + `)::bit(16)) > 1 THEN 'has ended more than once'
				WHEN kinds & ` + terminal + ` <> 0 AND kinds & ` + bit("OrderPaid", "InventoryReserved") + ` <> 0 AND folded IN ('created', 'inventory_reserved', 'paid') THEN 'went on after its end'
				WHEN kinds & ` + bit("OrderPaid", "PaymentFailed") + ` <> 0 AND kinds & ` + bit("InventoryReserved") + ` = 0 THEN 'was charged, and stock was never reserved'
				WHEN kinds & ` + bit("OrderCompleted") + ` <> 0 AND kinds & ` + bit("OrderPaid") + ` = 0 THEN 'was completed, and never paid'
				WHEN kinds & ` + bit("InventoryUnavailable") + ` <> 0 AND kinds & ` + bit("InventoryReserved") + ` <> 0 THEN 'got stock and got none'
				WHEN refunded > paid THEN 'was refunded more often than it was paid'
				WHEN kinds & ` + bit("PaymentRefunded", "PaymentCapturedLate") + ` = ` + bit("PaymentRefunded") + ` AND coalesce(refunds, 0) = 0 THEN 'was refunded, and its payment does not say so'
				WHEN kinds & ` + bit("PaymentRefunded") + ` = 0 AND refunds > 0 THEN 'has a refunded payment, and its history does not say so' END`,
		},
		{
			name: "fold", from: orderSource,
			means: "The row of an order is what its stream says.",
			advice: "`--repair` sets status and version of a row to those of its stream. An order without a stream, or the other way round, needs a restore: " +
				"the two are written in one transaction.",
			fault: `CASE
				WHEN status IS NULL AND stream_version IS NOT NULL THEN 'has a stream and no row'
				WHEN status IS NOT NULL AND stream_version IS NULL THEN 'has a row and no stream'
				WHEN kinds & ` + bit("OrderCreated") + ` = 0 THEN 'has a stream that does not begin with OrderCreated'
				WHEN status <> folded THEN 'is ' || status || ', and ' || folded || ' by its stream'
				WHEN version <> stream_version THEN format('is at version %s, and its stream at %s', version, stream_version) END`,
			repair: repairOrder,
		},
		{
			name: "contents", from: contentSource,
			means:  "Total, currency and lines of an order are those with which it was created.",
			advice: "The stream is right: find out who changed the row, and set it by hand from `millrace events show order-ID`.",
			fault: `CASE
				WHEN (data ->> 'total_amount')::numeric <> total_amount OR data ->> 'currency' <> currency
					THEN format('asks for %s %s, and was created with %s %s', trim_scale(total_amount), currency, data ->> 'total_amount', data ->> 'currency')
				WHEN data -> 'lines' <> lines THEN 'has other lines than it was created with' END`,
		},
		{
			name: "streams", from: orderSource,
			means:  "The versions of an order's stream are 1..n without gaps.",
			advice: "Events are missing: restore them from a backup. Until then the order cannot be folded from its beginning.",
			fault:  `CASE WHEN events <> stream_version OR low <> 1 THEN format('its stream has %s events with versions %s to %s', events, low, stream_version) END`,
		},
		{
			name: "other-streams", from: streamSource,
			means:  "The versions of every other stream, as those of users, are 1..n without gaps.",
			advice: "Events are missing: restore them from a backup. Until then the aggregate cannot be folded from its beginning.",
			fault:  `format('has %s events with versions %s to %s', events, low, high)`,
		},
		{
			name: "stock", from: stockSource,
			means:  "supplied = available + reserved + sold for each product, none below zero.",
			advice: "Count the goods. Then set the figures by hand; a restock is no way to correct them.",
			fault: `CASE
				WHEN supplied <> available + reserved + sold THEN format('%s supplied, and %s available + %s reserved + %s sold', supplied, available, reserved, sold)
				WHEN least(available, reserved, sold) < 0 THEN 'is below zero' END`,
		},
		{
			name: "reservations", from: stockSource,
			means:  "What is reserved is what orders in state inventory_reserved or paid hold; what is sold is what completed orders got.",
			advice: "`--repair` counts the orders anew, under the lock of the product's row, and sets reserved, sold and available.",
			fault: `CASE
				WHEN supplied IS NULL THEN format('is in orders (%s held, %s sold), and not in stock', held, completed)
				WHEN reserved <> held THEN format('%s reserved, and orders hold %s', reserved, held)
				WHEN sold <> completed THEN format('%s sold, and completed orders have %s', sold, completed) END`,
			repair: repairStock,
		},
		{
			name: "transactions", from: chargeSource,
			means:  "A capture pays one order.",
			advice: "Ask the payment provider which of the orders the capture is for; the other was delivered without being paid.",
			fault:  `format('pays %s orders, among them %s and %s', uses, one, other)`,
		},
		{
			name: "ledger", from: ledgerSource,
			means: "The payment gateway's own record and the payments agree, both ways.",
			advice: "A capture that is not recorded has to be refunded at the provider, unless its order still waits for it. " +
				"A payment that the gateway does not know: make sure that the service talks to the account that took the money.",
			fault: `CASE
				WHEN ours IS NULL AND NOT coalesce(under_way, false) AND refunded < their_amount
					THEN format('the gateway captured %s %s (%s), and no payment is recorded', trim_scale(their_amount), their_currency, theirs)
				WHEN theirs IS NULL AND NOT beyond THEN format('has a payment of %s %s (%s) that the gateway does not know', trim_scale(amount), currency, ours)
				WHEN amount <> their_amount OR currency <> their_currency
					THEN format('%s %s is recorded, and the gateway captured %s %s', trim_scale(amount), currency, trim_scale(their_amount), their_currency)
				WHEN status = 'captured' AND refunded > 0 AND NOT coalesce(under_way, false)
					THEN format('counts as captured, and the gateway gave back %s %s', trim_scale(refunded), their_currency)
				WHEN status = 'refunded' AND refunded < their_amount AND NOT coalesce(under_way, false)
					THEN format('counts as refunded, and the gateway gave back %s of %s %s', trim_scale(refunded), trim_scale(their_amount), their_currency) END`,
		},
		{
			name: "users", from: userSource,
			means:  "The table of users is at the versions of their streams, up to where the projection is.",
			advice: "Make it anew with `millrace projections rebuild users`; the service goes on meanwhile.",
			fault: `CASE
				WHEN version IS NULL THEN 'has a stream, and is not in the table'
				WHEN stream_version IS NULL THEN 'is in the table, and has no stream'
				WHEN version <> stream_version THEN format('is at version %s, and its stream at %s', version, stream_version) END`,
		},
		{
			name: "projections", from: projectionSource,
			means:  "Projections follow the events.",
			advice: "Look for `projections stand still` in the log, and for old transactions with `millrace status`: a projection waits for them.",
			fault: `CASE WHEN waits_since < now() - @older::interval
				THEN format('stands at position %s; the next event is of %s', position, to_char(waits_since, 'YYYY-MM-DD HH24:MI:SS')) END`,
		},
		{
			name: "outbox", from: outboxSource,
			means:  "The outbox is empty at rest: what is due gets published.",
			advice: "See why on `/readyz` and in the log (`publishing fails`), and that a service runs; `millrace consumers` lists those that are paused. Rows go out by themselves once their broker takes them.",
			fault: `CASE
				WHEN available_at IS NULL THEN format('to %s: waits since %s', topic, to_char(created_at, 'YYYY-MM-DD HH24:MI:SS'))
				ELSE format('to %s: was due at %s', topic, to_char(available_at, 'YYYY-MM-DD HH24:MI:SS')) END`,
			// A message that was scheduled is as old when it comes due.
			confirm: `SELECT seq::text FROM outbox WHERE seq = ANY($1::text[]::bigint[])`,
		},
		{
			name: "inbox", from: inboxSource,
			means:  "There is one inbox row for a message and its consumer: each is in the partition of its id.",
			advice: "A row in another partition does not keep its message from being applied again. Delete it if there is one in the right place; else move it.",
			fault:  `CASE WHEN day <> of_id THEN format('is in the partition of %s, and its id of %s', day, of_id) END`,
		},
		{
			name: "effects", from: effectSource,
			means:  "What a message has done and its inbox row are there together (within the retention of the inbox).",
			advice: "If the inbox was emptied or restored, messages that come again are applied again: stop consumption until topics are past them. If not, report it as a bug.",
			fault:  `'an ' || effect || ' of a message that no consumer has applied'`,
		},
		{
			name: "poison", from: poisonSource,
			means:  "Poison entries hold the bytes and headers of their message as they came.",
			advice: "Do not requeue the entry: have the message sent again by its producer.",
			fault: `CASE
				WHEN fingerprint <> of_payload THEN 'its payload has changed since it came'
				WHEN headers <> 'object' THEN 'its headers are no object' END`,
		},
		{
			name: "parked", from: parkedSource,
			means:  "Every parked key has a message that waits, every parked message a key, and none is overdue.",
			advice: "Look at it with `millrace parked show`, and have it tried at once with `millrace parked retry`. If keys stay overdue, no service runs that has their consumer.",
			fault: `CASE
				WHEN waiting IS NULL THEN 'is held, and no message waits'
				WHEN due_at IS NULL THEN 'has messages that wait, and nothing that brings them back'
				WHEN due_at < now() - @older::interval AND NOT paused THEN 'is due since ' || to_char(due_at, 'YYYY-MM-DD HH24:MI:SS') END`,
		},
	}
}
