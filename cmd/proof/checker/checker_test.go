package checker_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/cmd/proof/checker"
	"github.com/millracehq/millrace/cmd/proof/record"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func id(n byte) uuid.UUID { return uuid.UUID{6: 0x40, 8: 0x80, 15: n} }

// text is id as SQL.
func text(n byte) string { return "'" + id(n).String() + "'" }

// sound is what the service leaves after the messages of known: an order that is
// completed, one that was cancelled after it was paid, a user with an update, a restock,
// a tracked event, and a message that cannot be applied.
var sound = expand(`
	INSERT INTO stock (product_id, supplied, available, sold) VALUES ('p', 15, 14, 1);
	INSERT INTO orders (id, status, total_amount, currency, lines, version) VALUES
		('a', 'completed', 9.90, 'USD', '[{"product_id": "p", "quantity": 1}]', 4),
		('b', 'cancelled', 5.00, 'USD', '[{"product_id": "p", "quantity": 2}]', 5);
	INSERT INTO events (stream, version, type, data, message_id) VALUES
		('order-a', 1, 'OrderCreated', '{}', #1), ('order-a', 2, 'InventoryReserved', '{}', #1),
		('order-a', 3, 'OrderPaid', '{"transaction_id": "t1"}', #11), ('order-a', 4, 'OrderCompleted', '{}', #12),
		('order-b', 1, 'OrderCreated', '{}', #2), ('order-b', 2, 'InventoryReserved', '{}', #2),
		('order-b', 3, 'OrderPaid', '{"transaction_id": "t2"}', #13), ('order-b', 4, 'OrderCancelled', '{}', #3),
		('order-b', 5, 'PaymentRefunded', '{"transaction_id": "t2", "refund_id": "r"}', #14),
		('user-u', 1, 'UserCreated', '{}', #4), ('user-u', 2, 'UserPropertiesUpdated', '{}', #5), ('user-u', 3, 'UserNameUpdated', '{}', #5);
	INSERT INTO payments (order_id, status, amount, currency, transaction_id) VALUES ('a', 'captured', 9.90, 'USD', 't1');
	INSERT INTO payments (order_id, status, amount, currency, transaction_id, refund_id, refunded_at) VALUES ('b', 'refunded', 5, 'USD', 't2', 'r', now());
	INSERT INTO inbox (consumer, message_id, day, fingerprint, causation_id) VALUES
		('fulfilment.place', #1, '1970-01-01', 1, NULL), ('fulfilment.place', #2, '1970-01-01', 1, NULL),
		('fulfilment.cancel', #3, '1970-01-01', 1, NULL), ('account.create', #4, '1970-01-01', 1, NULL),
		('account.update', #5, '1970-01-01', 1, NULL), ('inventory.restock', #6, '1970-01-01', 1, NULL),
		('analytics.track', #7, '1970-01-01', 1, NULL),
		('fulfilment.charge', #11, '1970-01-01', 1, #1), ('fulfilment.complete', #12, '1970-01-01', 1, #11),
		('fulfilment.charge', #13, '1970-01-01', 1, #2), ('fulfilment.complete', #15, '1970-01-01', 1, #13),
		('fulfilment.refund', #14, '1970-01-01', 1, #3),
		('notification.route', #16, '1970-01-01', 1, #4), ('notification.route', #17, '1970-01-01', 1, #5),
		('notification.email', #18, '1970-01-01', 1, #16), ('notification.email', #19, '1970-01-01', 1, #17);
	INSERT INTO published_messages (topic, message_id, correlation_id, causation_id) VALUES
		('orders.cancelled', #20, #3, #3), ('payments.refunded', #21, #3, #14), ('user.profile.updated', #22, #5, #5);
	INSERT INTO users (id, version, name, email, properties, created_at, updated_at) VALUES ('u', 3, 'New', 'u@example.com', '{"step": 1}', now(), now());
	INSERT INTO notifications (message_id, user_id, channel, status, answer) VALUES (#18, 'u', 'email', 'sent', 'ok'), (#19, 'u', 'email', 'sent', 'ok');
	INSERT INTO analytics_events (day, message_id, event, occurred_at) VALUES ('2026-01-31', #7, 'viewed', now());
	INSERT INTO analytics_daily (day, event, count) VALUES ('2026-01-31', 'viewed', 1);
	INSERT INTO failed_keys (consumer, key) VALUES ('fulfilment.place', 'x');
	INSERT INTO failed_messages (state, consumer, topic, key, failed_key, message_id, fingerprint, origin, headers, payload, reason, error, deliveries) VALUES
		('stopped', 'fulfilment.place', 'orders.created', 'x', 'x', #8, 1, '', '{"proof-number": "8"}', 'bad', 'invalid', 'no', 1)`)

// expand replaces #n with the id n.
func expand(sql string) string {
	for n := 30; n > 0; n-- {
		sql = strings.ReplaceAll(sql, fmt.Sprintf("#%d", n), text(byte(n)))
	}

	return sql
}

// known returns the record that belongs to sound, on the embedded broker.
func known() *record.Record {
	line := func(n int64) []record.Line { return []record.Line{{Product: "p", Quantity: n}} }

	return &record.Record{
		Stock: map[string]int64{"p": 10}, Secrets: []string{"hush"}, Edited: map[uuid.UUID][]byte{},
		Messages: []*record.Message{
			{Topic: "orders.created", Key: "a", ID: id(1), Fate: record.Applied, Order: &record.Order{Lines: line(1), Total: 990}},
			{Topic: "orders.created", Key: "b", ID: id(2), Fate: record.Applied, Order: &record.Order{Lines: line(2), Total: 500, Cancelled: true}},
			{Topic: "orders.cancel.requested", Key: "b", ID: id(3), Fate: record.Applied},
			{Topic: "user.created", Key: "u", ID: id(4), Fate: record.Applied, User: &record.User{Create: true, Fields: map[string]any{"name": "Old", "email": "u@example.com"}}},
			{Topic: "user.updated", Key: "u", ID: id(5), Fate: record.Applied, User: &record.User{Fields: map[string]any{"name": "New", "step": 1}}},
			{Topic: "inventory.restocked", Key: "p", ID: id(6), Fate: record.Applied, Restock: &record.Line{Product: "p", Quantity: 5}},
			{Topic: "inventory.restocked", Key: "p", ID: id(6), Fate: record.Applied, Restock: &record.Line{Product: "p", Quantity: 5}, Copy: true},
			{Topic: "analytics.track", ID: id(7), Fate: record.Applied, Event: "viewed"},
			{Topic: "orders.created", Key: "x", ID: id(8), Fate: record.Stopped, Reason: "invalid", Payload: []byte("bad")},
			{Topic: "inventory.restocked", Key: "p", ID: id(9), Fate: record.Aborted, Restock: &record.Line{Product: "p", Quantity: 5}},
		},
		Charges: []record.Charge{
			{Order: "a", Transaction: "t1", Amount: 990, Captures: 1},
			{Order: "b", Transaction: "t2", Amount: 500, Captures: 1, Refunds: []record.Refund{{ID: "r", Amount: 500}}},
		},
		Mails: []record.Delivery{{ID: id(18).String()}, {ID: id(19).String()}, {ID: id(19).String()}},
	}
}

// onTopics adds what is on the topics of a broker.
func onTopics(rec *record.Record) {
	rec.Topics = map[string][]record.Published{}

	for _, p := range []struct {
		topic     string
		id, cause byte
	}{
		{"orders.created", 1, 0}, {"payments.requested", 11, 1}, {"payments.requested", 11, 1}, {"orders.completed", 12, 11}, {"payments.requested", 13, 2},
		{"orders.completed", 15, 13}, {"payments.refund.requested", 14, 3}, {"notifications", 16, 4}, {"notifications", 17, 5},
		{"notifications.email", 18, 16}, {"notifications.email", 19, 17}, {"orders.cancelled", 20, 3}, {"payments.refunded", 21, 14},
		{"user.profile.updated", 22, 5}, {"notifications", 16, 4}, // published again after a crash
	} {
		published := record.Published{ID: id(p.id), Place: p.topic + "/0", Offset: int64(len(rec.Topics[p.topic]))}
		if p.cause > 0 {
			published.Causation = id(p.cause)
		}

		rec.Topics[p.topic] = append(rec.Topics[p.topic], published)
	}
}

// found returns the violated invariants.
func found(t *testing.T, db *pgxpool.Pool, rec *record.Record) (list []checker.Invariant, all []checker.Violation) {
	t.Helper()

	all, err := checker.Check(t.Context(), db, rec)
	if err != nil {
		t.Fatal(err)
	}

	for _, v := range all {
		if !slices.Contains(list, v.Invariant) {
			list = append(list, v.Invariant)
		}
	}

	slices.Sort(list)

	return list, all
}

func execute(t *testing.T, db *pgxpool.Pool, sql string) {
	t.Helper()

	for statement := range strings.SplitSeq(sql, ";\n") {
		if _, err := db.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

func TestASoundDatabaseHasNoViolation(t *testing.T) {
	t.Parallel()

	db := pgtest.New(t)
	execute(t, db, sound)

	rec := known()

	if _, all := found(t, db, rec); len(all) > 0 {
		t.Errorf("on the embedded broker: %v", all)
	}

	onTopics(rec)

	if _, all := found(t, db, rec); len(all) > 0 {
		t.Errorf("on another broker: %v", all)
	}
}

// planted are defects in the database, with the invariant that each violates.
var planted = map[string]struct {
	invariant checker.Invariant
	sql       string
}{
	"an order is lost":                  {checker.Ended, `DELETE FROM orders WHERE id = 'a'`},
	"an order has not ended":            {checker.Ended, `UPDATE orders SET status = 'paid' WHERE id = 'a'`},
	"an order that nobody sent":         {checker.Ended, `UPDATE orders SET id = 'z' WHERE id = 'a'`},
	"an order has another body":         {checker.Ended, `UPDATE orders SET total_amount = 9.80 WHERE id = 'a'`},
	"an order is cancelled unasked":     {checker.Ended, `UPDATE orders SET status = 'cancelled' WHERE id = 'a'`},
	"stock is lost":                     {checker.Stock, `UPDATE stock SET supplied = 14, available = 13`},
	"a restock is applied twice":        {checker.Stock, `UPDATE stock SET supplied = 20, available = 19`},
	"goods stay reserved":               {checker.Stock, `UPDATE stock SET reserved = 2, available = 12`},
	"goods are sold twice":              {checker.Stock, `UPDATE stock SET sold = 2, available = 13`},
	"a capture is not recorded":         {checker.Money, `DELETE FROM payments WHERE order_id = 'a'`},
	"a payment of an unknown capture":   {checker.Money, `UPDATE payments SET transaction_id = 'other' WHERE order_id = 'a'`},
	"a refund is not recorded":          {checker.Money, `UPDATE payments SET status = 'captured', refund_id = NULL, refunded_at = NULL`},
	"a refund is recorded twice":        {checker.Compensation, `INSERT INTO events (stream, version, type, data, message_id) VALUES ('order-b', 6, 'PaymentRefunded', '{"transaction_id": "t2"}', #14)`},
	"an order is cancelled twice":       {checker.Compensation, `INSERT INTO events (stream, version, type, data, message_id) VALUES ('order-b', 6, 'OrderCancelled', '{}', #3)`},
	"a refund of what was not captured": {checker.Compensation, `UPDATE events SET data = '{"transaction_id": "t9"}' WHERE type = 'PaymentRefunded'`},
	"a version is missing":              {checker.Streams, `UPDATE events SET version = 9 WHERE stream = 'order-a' AND version = 4`},
	"a state does not follow":           {checker.Streams, `UPDATE orders SET version = 3 WHERE id = 'a'`},
	"a user is not projected":           {checker.Streams, `UPDATE users SET version = 2`},
	"a user has another value":          {checker.Streams, `UPDATE users SET name = 'Old'`},
	"a message was not published":       {checker.Topics, `DELETE FROM published_messages WHERE topic = 'orders.cancelled'`},
	"a message on the way is lost":      {checker.Topics, `DELETE FROM inbox WHERE consumer = 'fulfilment.complete' AND message_id = #15`},
	"a message without a commit":        {checker.Topics, `INSERT INTO published_messages (topic, message_id, correlation_id, causation_id) VALUES ('orders.expired', #23, #1, #1)`},
	"a message is published twice":      {checker.Topics, `INSERT INTO published_messages (topic, message_id, correlation_id, causation_id) VALUES ('orders.cancelled', #23, #3, #3)`},
	"the outbox is not empty":           {checker.Topics, `INSERT INTO outbox (shard, topic, key, message_id, correlation_id, payload) VALUES (1, 't', 'k', #23, #23, '')`},
	"an update is applied twice":        {checker.Order, `INSERT INTO events (stream, version, type, data, message_id) VALUES ('user-u', 4, 'UserNameUpdated', '{}', #4), ('user-u', 5, 'UserNameUpdated', '{}', #5)`},
	"an update is lost":                 {checker.Order, `DELETE FROM events WHERE message_id = #5`},
	"updates are in another order":      {checker.Order, `UPDATE events SET message_id = CASE version WHEN 1 THEN #5::uuid ELSE #4 END WHERE stream = 'user-u'`},
	"a message is in the inbox twice":   {checker.Inbox, `INSERT INTO inbox (consumer, message_id, day, fingerprint) VALUES ('fulfilment.place', #1, '1970-01-02', 1)`},
	"a message is not in the inbox":     {checker.Inbox, `DELETE FROM inbox WHERE consumer = 'inventory.restock'`},
	"an effect without an inbox row":    {checker.Inbox, `DELETE FROM inbox WHERE consumer = 'fulfilment.charge' AND message_id = #11`},
	"an inbox row without its effect":   {checker.Inbox, `DELETE FROM analytics_events`},
	"an event is counted twice":         {checker.Inbox, `UPDATE analytics_daily SET count = 2`},
	"an aborted message is applied":     {checker.Inbox, `INSERT INTO inbox (consumer, message_id, day, fingerprint) VALUES ('inventory.restock', #9, '1970-01-01', 1)`},
	"a notification is not recorded":    {checker.Inbox, `DELETE FROM notifications WHERE message_id = #18`},
	"an e-mail was never sent":          {checker.Inbox, `INSERT INTO notifications (message_id, user_id, channel, status, answer) VALUES (#23, 'u', 'email', 'sent', 'ok')`},
	"a failed message is lost":          {checker.Failed, `DELETE FROM failed_messages`},
	"a failed message has other bytes":  {checker.Failed, `UPDATE failed_messages SET payload = 'other'`},
	"a failed message has no headers":   {checker.Failed, `UPDATE failed_messages SET headers = '{}'`},
	"a failed message has no reason":    {checker.Failed, `UPDATE failed_messages SET reason = 'handler_error'`},
	"a good message failed":             {checker.Failed, `UPDATE failed_messages SET message_id = #1, topic = 'orders.created', payload = ''`},
	"a message waits":                   {checker.Stuck, `UPDATE failed_messages SET state = 'waiting', deliveries = 0`},
	"a key is due":                      {checker.Stuck, `UPDATE failed_keys SET due_at = now()`},
	"a key is leased":                   {checker.Stuck, `UPDATE failed_keys SET leased_at = now(), leased_until = now()`},
	"a consumer is paused":              {checker.Stuck, `INSERT INTO paused_consumers (consumer, who, why) VALUES ('inventory.restock', 'me', 'why')`},
	"an update is a miss":               {checker.Stuck, `INSERT INTO user_misses (message_id, user_id) VALUES (#5, 'u')`},
}

func TestEachDefectInTheDatabaseIsFound(t *testing.T) {
	t.Parallel()

	for name, p := range planted {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			db := pgtest.New(t)
			execute(t, db, sound)
			execute(t, db, expand(p.sql))

			if list, all := found(t, db, known()); !slices.Contains(list, p.invariant) {
				t.Errorf("expected a violation of %d (%s), found %v", p.invariant, checker.Invariants[p.invariant], all)
			}
		})
	}
}

// Defects that the outside world, the topics or the logs show.
var shown = map[string]struct {
	invariant checker.Invariant
	change    func(t *testing.T, rec *record.Record)
}{
	"an order is charged twice": {checker.Money, func(_ *testing.T, rec *record.Record) {
		rec.Charges = append(rec.Charges, record.Charge{Order: "a", Transaction: "t3", Amount: 990, Captures: 1})
	}},
	"a charge for nothing": {checker.Money, func(_ *testing.T, rec *record.Record) {
		rec.Charges = append(rec.Charges, record.Charge{Order: "z", Transaction: "t3", Amount: 990, Captures: 1})
	}},
	"a completed order is not charged":  {checker.Money, func(_ *testing.T, rec *record.Record) { rec.Charges[0].Captures = 0 }},
	"a cancelled order is not refunded": {checker.Money, func(_ *testing.T, rec *record.Record) { rec.Charges[1].Refunds = nil }},
	"a capture is refunded twice": {checker.Compensation, func(_ *testing.T, rec *record.Record) {
		rec.Charges[1].Refunds = append(rec.Charges[1].Refunds, rec.Charges[1].Refunds[0])
	}},
	"a declined order is completed":        {checker.Ended, func(_ *testing.T, rec *record.Record) { rec.Messages[0].Order.Declined = true }},
	"an e-mail did not arrive":             {checker.Inbox, func(_ *testing.T, rec *record.Record) { rec.Mails = rec.Mails[1:] }},
	"an e-mail of nobody":                  {checker.Inbox, func(_ *testing.T, rec *record.Record) { rec.Mails[0].ID = id(29).String() }},
	"a message in hand was acknowledged":   {checker.Offsets, func(_ *testing.T, rec *record.Record) { rec.Findings = []string{"orders.created/0@1"} }},
	"a conflict is lost":                   {checker.Failed, func(_ *testing.T, rec *record.Record) { rival(rec) }},
	"a message is missing on its topic":    {checker.Topics, func(_ *testing.T, rec *record.Record) { onTopics(rec); rec.Topics["payments.refunded"] = nil }},
	"a message on a topic was not applied": {checker.Inbox, func(_ *testing.T, rec *record.Record) { onTopics(rec); publish(rec, "orders.completed", 24, 11) }},
	"a message on a topic is of nobody":    {checker.Topics, func(_ *testing.T, rec *record.Record) { onTopics(rec); publish(rec, "orders.created", 24, 0) }},
	"a message on a topic was rolled back": {checker.Topics, func(_ *testing.T, rec *record.Record) { onTopics(rec); publish(rec, "orders.expired", 24, 2) }},
	"the messages of a key are out of turn": {checker.Order, func(_ *testing.T, rec *record.Record) {
		onTopics(rec)
		slices.Reverse(rec.Topics["notifications"][:2])
		rec.Topics["notifications"] = rec.Topics["notifications"][:2]
	}},
	"a secret is in a log": {checker.Logs, func(t *testing.T, rec *record.Record) {
		t.Helper()

		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, []byte("level=INFO\nlevel=WARN to=hush@example.com\n"), 0o600); err != nil {
			t.Fatal(err)
		}

		rec.Logs = []string{path}
	}},
}

func rival(rec *record.Record) {
	m := *rec.Messages[0]
	m.ID, m.Fate, m.Order = id(28), record.Rival, &record.Order{Lines: m.Order.Lines, Total: 1}
	rec.Messages[0].Fate = record.Rival
	rec.Messages = append(rec.Messages, &m)
}

func publish(rec *record.Record, topic string, n, cause byte) {
	p := record.Published{ID: id(n), Place: topic + "/0"}
	if cause > 0 {
		p.Causation = id(cause)
	}

	rec.Topics[topic] = append(rec.Topics[topic], p)
}

func TestEachDefectThatOthersSeeIsFound(t *testing.T) {
	t.Parallel()

	db := pgtest.New(t)
	execute(t, db, sound)

	for name, s := range shown {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			rec := known()
			s.change(t, rec)

			if list, all := found(t, db, rec); !slices.Contains(list, s.invariant) {
				t.Errorf("expected a violation of %d (%s), found %v", s.invariant, checker.Invariants[s.invariant], all)
			}
		})
	}
}

func TestEveryInvariantHasADefect(t *testing.T) {
	t.Parallel()

	for i, what := range checker.Invariants {
		tested := false

		for _, p := range planted {
			tested = tested || p.invariant == i
		}

		for _, s := range shown {
			tested = tested || s.invariant == i
		}

		if !tested {
			t.Errorf("no test violates %d (%s)", i, what)
		}
	}
}

func TestAViolationNamesWhatWasExpectedAndFound(t *testing.T) {
	t.Parallel()

	db := pgtest.New(t)
	execute(t, db, sound)
	execute(t, db, `DELETE FROM orders WHERE id = 'a'`)

	_, all := found(t, db, known())

	var out bytes.Buffer

	checker.Print(&out, all)

	if line := "invariant 1 (every accepted order has ended once, or has an open failed message): order a: expected an order, or an open failed message, found neither"; !strings.Contains(out.String(), line) {
		t.Errorf("printed %s", out.String())
	}
}

func TestARecordIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()

	path := filepath.Join(t.TempDir(), "record.json")
	if err := known().Save(path); err != nil {
		t.Fatal(err)
	}

	again, err := record.Load(path)
	if err != nil {
		t.Fatal(err)
	}

	want, _ := json.Marshal(known())
	if got, _ := json.Marshal(again); !bytes.Equal(want, got) { // both can be encoded: see Save
		t.Errorf("got %s, expected %s", got, want)
	}
}
