package soak

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/cmd/proof/wire"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// sound writes a completed and a rejected order, and a user, as the service leaves them.
const sound = `
	INSERT INTO stock (product_id, supplied, available, sold) VALUES ('p', 10, 9, 1);
	INSERT INTO orders (id, status, total_amount, currency, lines, version) VALUES
		('a', 'completed', 9.99, 'USD', '[{"product_id": "p", "quantity": 1}]', 4),
		('b', 'payment_failed', 0, 'USD', '[{"product_id": "p", "quantity": 1}]', 3);
	INSERT INTO inbox (consumer, message_id, day, fingerprint) VALUES
		('fulfilment.place', '00000000-0000-4000-8000-000000000001', '1970-01-01', 1),
		('account.create', '00000000-0000-4000-8000-000000000002', '1970-01-01', 1),
		('account.update', '00000000-0000-4000-8000-000000000003', '1970-01-01', 1);
	INSERT INTO events (stream, version, type, data, message_id) VALUES
		('order-a', 1, 'OrderCreated', '{}', '00000000-0000-4000-8000-000000000001'),
		('order-a', 2, 'InventoryReserved', '{}', '00000000-0000-4000-8000-000000000001'),
		('order-a', 3, 'OrderPaid', '{}', '00000000-0000-4000-8000-000000000001'),
		('order-a', 4, 'OrderCompleted', '{}', '00000000-0000-4000-8000-000000000001'),
		('order-b', 1, 'OrderCreated', '{}', '00000000-0000-4000-8000-000000000001'),
		('order-b', 2, 'InventoryReserved', '{}', '00000000-0000-4000-8000-000000000001'),
		('order-b', 3, 'PaymentFailed', '{}', '00000000-0000-4000-8000-000000000001'),
		('user-u', 1, 'UserCreated', '{}', '00000000-0000-4000-8000-000000000002'),
		('user-u', 2, 'UserPropertiesUpdated', '{}', '00000000-0000-4000-8000-000000000003');
	INSERT INTO payments (order_id, status, amount, currency, transaction_id) VALUES ('a', 'captured', 9.99, 'USD', 't');
	INSERT INTO payments (order_id, status, amount, currency, decline_reason) VALUES ('b', 'declined', 0, 'USD', 'zero');
	INSERT INTO gateway_ledger (idempotency_key, order_id, attempt, amount, currency, transaction_id, settled_at) VALUES ('k', 'a', 1, 9.99, 'USD', 't', now());`

func id(n byte) uuid.UUID {
	return uuid.UUID{6: 0x40, 8: 0x80, 15: n}
}

// load is what was sent to produce the data of sound.
var load = expected{
	orders:    []string{"a", "b"},
	histories: map[string][]uuid.UUID{"u": {id(2), id(3)}},
	ids:       map[string][]uuid.UUID{ordersCreated: {id(1)}, userCreated: {id(2)}, userUpdated: {id(3)}},
}

// checked returns the first words of the checks that fail.
func checked(t *testing.T, db *pgxpool.Pool) (failed []string) {
	t.Helper()

	var out bytes.Buffer

	r := &report{out: &out}
	if err := checkDatabase(t.Context(), db, r); err != nil {
		t.Fatal(err)
	}

	if err := checkLoad(t.Context(), db, load, r); err != nil {
		t.Fatal(err)
	}

	for line := range strings.Lines(out.String()) {
		if what, fails := strings.CutPrefix(line, "FAIL  "); fails {
			failed = append(failed, what)
		}
	}

	if (r.err() != nil) != (len(failed) > 0) {
		t.Errorf("the error is %v after\n%s", r.err(), out.String())
	}

	return failed
}

func execute(t *testing.T, db *pgxpool.Pool, sql string) {
	t.Helper()

	if _, err := db.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func TestASoundDatabasePasses(t *testing.T) {
	t.Parallel()

	db := pgtest.New(t)
	execute(t, db, sound)

	if failed := checked(t, db); len(failed) > 0 {
		t.Errorf("failed: %q", failed)
	}
}

// Each fault is one that the service must never leave behind. Constraints that would
// prevent it are dropped first.
func TestEachFaultIsFound(t *testing.T) {
	t.Parallel()

	faults := map[string][]string{ // the check that must fail, and faults that it must find
		"every order has ended":                               {`UPDATE orders SET status = 'paid' WHERE id = 'a'`},
		"stock adds up":                                       {`ALTER TABLE stock DROP CONSTRAINT stock_balanced; UPDATE stock SET available = 8`, `UPDATE stock SET available = 8, reserved = 1`},
		"sold stock matches the completed orders":             {`UPDATE stock SET sold = 2, available = 8`},
		"no stream has a gap":                                 {`DELETE FROM events WHERE stream = 'order-a' AND version = 2`},
		"no step of an order happened twice":                  {`UPDATE events SET type = 'OrderPaid' WHERE stream = 'order-a' AND version = 4`},
		"the history of each order leads to its state":        {`UPDATE orders SET version = 5 WHERE id = 'a'`, `UPDATE orders SET status = 'completed' WHERE id = 'b'`, `DELETE FROM events WHERE stream = 'order-b'`},
		"an order is captured if and only if it is completed": {`DELETE FROM payments WHERE order_id = 'a'`, `UPDATE payments SET amount = 1 WHERE order_id = 'a'`, `UPDATE payments SET status = 'captured', transaction_id = 't2', decline_reason = NULL WHERE order_id = 'b'`},
		"the provider captured each order once, as recorded":  {`DELETE FROM gateway_ledger`, `UPDATE gateway_ledger SET refunded = 1, refund_id = 'r'`, `INSERT INTO gateway_ledger (idempotency_key, order_id, attempt, amount, currency, transaction_id, settled_at) VALUES ('k2', 'a', 2, 9.99, 'USD', 't2', now())`},
		"a message is in the inbox of a consumer once":        {`INSERT INTO inbox (consumer, message_id, day, fingerprint) VALUES ('account.update', '00000000-0000-4000-8000-000000000003', '1970-01-02', 1)`},
		"every recorded event has its message in the inbox":   {`DELETE FROM inbox WHERE consumer = 'fulfilment.place'`},
		"the outbox is empty":                                 {`INSERT INTO outbox (shard, topic, key, message_id, correlation_id, payload) VALUES (0, 't', 'k', gen_random_uuid(), '00000000-0000-4000-8000-000000000001', '')`},
		"no message failed or waits":                          {`INSERT INTO failed_messages (state, consumer, topic, key, message_id, fingerprint, origin, headers, payload, reason, deliveries) VALUES ('stopped', 'c', 't', 'k', gen_random_uuid(), 1, '', '{}', '', 'rejected', 1)`},
		"no key is held":                                      {`INSERT INTO failed_keys (consumer, key) VALUES ('c', 'k')`},
		"no update was missed":                                {`INSERT INTO user_misses (message_id, user_id) VALUES (gen_random_uuid(), 'u')`},
		"2 orders exist, and no others":                       {`DELETE FROM orders WHERE id = 'b'`, `INSERT INTO orders (id, status, total_amount, currency, lines, version) VALUES ('c', 'inventory_unavailable', 0, 'USD', '[{"product_id": "p", "quantity": 1}]', 2)`},
		"the histories of 1 users have every message once":    {`DELETE FROM events WHERE stream = 'user-u' AND version = 2`, `INSERT INTO events (stream, version, type, data, message_id) VALUES ('user-u', 3, 'X', '{}', '00000000-0000-4000-8000-000000000003')`},
		"1 ids sent to user.updated are in the inbox":         {`DELETE FROM inbox WHERE consumer = 'account.update'`},
		"1 ids sent to orders.created are in the inbox":       {`UPDATE inbox SET consumer = 'other' WHERE consumer = 'fulfilment.place'`},
	}

	for _, q := range queries {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(faults)), func(what string) bool { return strings.HasPrefix(q.what, what) }) {
			t.Errorf("no fault is known for the check that %s", q.what)
		}
	}

	for check, list := range faults {
		t.Run(check, func(t *testing.T) {
			t.Parallel()

			for _, fault := range list {
				db := pgtest.New(t)
				execute(t, db, sound)
				execute(t, db, fault)

				if failed := checked(t, db); !slices.ContainsFunc(failed, func(what string) bool { return strings.HasPrefix(what, check) }) {
					t.Errorf("after %s: failed %q", fault, failed)
				}
			}
		})
	}
}

func TestHistoriesNameWhatDeviates(t *testing.T) {
	t.Parallel()

	want := map[string][]uuid.UUID{"u": {id(1), id(2), id(3)}}

	for expected, got := range map[string][]uuid.UUID{
		"":                                         {id(1), id(2), id(3)},
		"u: 2 of 3 messages were applied":          {id(1), id(2)},
		"u: 0 of 3 messages were applied":          nil,
		"u: message 3 was applied as number 2":     {id(1), id(3), id(2)},
		"u: message 2 was applied twice":           {id(1), id(2), id(2), id(3)},
		"u: event 4 comes from an unknown message": {id(1), id(2), id(3), id(4)},
	} {
		if found := strings.Join(histories(want, map[string][]uuid.UUID{"u": got}), "; "); found != expected {
			t.Errorf("%v: got %q, expected %q", got, found, expected)
		}
	}

	if found := histories(nil, map[string][]uuid.UUID{"x": {id(1)}}); len(found) != 1 {
		t.Errorf("an unknown user: got %q", found)
	}
}

func TestStepsOnATopicMayRepeatButNotDeviate(t *testing.T) {
	t.Parallel()

	want := map[string][]uuid.UUID{"u": {id(1), id(2), id(3)}} // a creation and two updates
	step := func(message byte, n string) wire.Record {
		return wire.Record{ID: id(message), Value: []byte(`{"user_id":"u","changes":{"step":` + n + `}}`)}
	}

	for name, c := range map[string]struct {
		published []wire.Record
		faults    int
	}{
		"all":              {[]wire.Record{step(1, "1"), step(2, "2")}, 0},
		"repeated":         {[]wire.Record{step(1, "1"), step(2, "2"), step(1, "1"), step(2, "2")}, 0},
		"lost":             {[]wire.Record{step(1, "1")}, 1},
		"the first lost":   {[]wire.Record{step(2, "2")}, 1},
		"reversed":         {[]wire.Record{step(2, "2"), step(1, "1")}, 3},
		"twice, two ids":   {[]wire.Record{step(1, "1"), step(3, "1"), step(2, "2")}, 1},
		"one not readable": {[]wire.Record{step(1, "1"), step(2, "2"), {ID: id(3), Value: []byte("x")}}, 1},
	} {
		if found := steps(want, c.published); len(found) != c.faults {
			t.Errorf("%s: got %q, expected %d faults", name, found, c.faults)
		}
	}
}

func TestTheLongestGapIsWhileARecordWaits(t *testing.T) {
	t.Parallel()

	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }

	for name, c := range map[string]struct {
		list    []application
		longest time.Duration
	}{
		"nothing":                          {nil, 0},
		"nothing to apply is no gap":       {[]application{{at(0), at(10)}, {at(5000), at(5010)}}, 10 * time.Millisecond},
		"a record waits":                   {[]application{{at(0), at(10)}, {at(20), at(1520)}, {at(30), at(1530)}}, 1500 * time.Millisecond},
		"others are applied meanwhile":     {[]application{{at(0), at(3000)}, {at(0), at(1000)}, {at(0), at(2000)}}, time.Second},
		"a backlog is not applied at once": {[]application{{at(0), at(10)}, {at(0), at(2010)}, {at(1990), at(2020)}}, 2 * time.Second},
	} {
		if longest := longestGap(c.list); longest != c.longest {
			t.Errorf("%s: got %s, expected %s", name, longest, c.longest)
		}
	}
}

func TestALoadIsReproducibleAndInOrder(t *testing.T) {
	t.Parallel()

	size := sizes{orders: 50, users: 10, updates: 20, products: 10, early: true}
	payloads := func(seed uint64) (list []string) {
		for _, o := range newLoad("n", size, rand.New(rand.NewPCG(seed, 0))) {
			list = append(list, o.payload)
		}

		return list
	}

	if !slices.Equal(payloads(1), payloads(1)) || slices.Equal(payloads(1), payloads(2)) {
		t.Error("the seed does not decide the load")
	}

	sent := newLoad("n", size, rand.New(rand.NewPCG(1, 0)))
	if want := expect(sent); len(sent) != 2*50+10*(2+20) || want.units() != 50+10*21 || len(want.histories["n-3"]) != 21 {
		t.Errorf("%d messages, %d units", len(sent), want.units())
	}

	creation := slices.IndexFunc(sent, func(o outgoing) bool { return o.topic == userCreated && o.user == "n-5" })
	update := slices.IndexFunc(sent, func(o outgoing) bool { return o.topic == userUpdated && o.user == "n-5" })

	if creation < update {
		t.Error("no creation comes after its updates")
	}
}

func TestPersonalDataInALogIsFound(t *testing.T) {
	t.Parallel()

	if found := leaks("level=INFO msg=ready\nlevel=INFO to=" + secret + "@example.com\n"); len(found) != 1 {
		t.Errorf("got %q", found)
	}
}
