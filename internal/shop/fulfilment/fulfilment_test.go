package fulfilment_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// shop is the process on a database with the guide's stock.
type shop struct {
	pool    *pgxpool.Pool
	process *fulfilment.Process
	orders  *order.Service
	stock   *inventory.Service
	// unserved lists the orders whose payment request has not been processed.
	unserved []string
}

func (s *shop) undelivered(context.Context, string, []string) ([]string, error) {
	return s.unserved, nil
}

// running reports no stall: orders can be paid.
func running(...string) string { return "" }

func newShop(tb testing.TB) *shop {
	tb.Helper()

	pool := pgtest.New(tb)
	s := &shop{pool: pool, orders: order.NewService(pool), stock: inventory.NewService(pool)}
	s.process = fulfilment.NewProcess(fulfilment.DefaultConfig(), s.orders, s.stock, payment.NewSimulated(), s.undelivered)

	if err := s.stock.Seed(context.Background(), map[string]int64{"product_1": 100, "product_2": 50, "product_3": 25}); err != nil {
		tb.Fatal(err)
	}

	return s
}

// run runs a step of the process in a transaction of its own.
func run[E any](s *shop, step func(context.Context, pgx.Tx, []E) ([]event.Outgoing, error), events ...E) (out []event.Outgoing, err error) {
	err = postgres.InTx(context.Background(), s.pool, func(tx pgx.Tx) (err error) {
		out, err = step(context.Background(), tx, events)

		return err
	})

	return out, err
}

func created(body string) event.Event[fulfilment.OrderCreated] {
	payload, err := event.Decode[fulfilment.OrderCreated]([]byte(`{"order":` + body + `}`))
	if err != nil {
		panic(err)
	}

	return event.Event[fulfilment.OrderCreated]{Meta: event.Start(payload).Meta, Payload: payload}
}

// pay answers a payment request through the gateway.
func (s *shop) pay(out event.Outgoing) ([]event.Outgoing, error) {
	requested := event.Event[fulfilment.PaymentRequested]{Meta: out.Meta, Payload: out.Payload.(fulfilment.PaymentRequested)} //nolint:forcetypeassert // a test

	outcome, err := s.process.Charge(context.Background(), requested)
	if err != nil {
		return nil, err
	}

	return run(s, s.process.Settle, fulfilment.Charged{Event: requested, Result: &outcome})
}

func (s *shop) status(id string) string {
	details, err := s.orders.Show(context.Background(), id)
	if err != nil {
		return err.Error()
	}

	var history []string
	for _, e := range details.History {
		history = append(history, e.Type)
	}

	return fmt.Sprintf("%s v%d: %s", details.Status, details.Version, strings.Join(history, " "))
}

func (s *shop) level(tb testing.TB, product string) string {
	tb.Helper()

	list, err := s.stock.List(context.Background(), product)
	if err != nil || len(list) != 1 {
		tb.Fatalf("stock of %s: %v, %v", product, list, err)
	}

	return fmt.Sprintf("%d/%d/%d", list[0].Available, list[0].Reserved, list[0].Sold)
}

func expect(tb testing.TB, got, want string) {
	tb.Helper()

	if got != want {
		tb.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestAnOrderIsPlacedPaidAndCompleted(t *testing.T) {
	t.Parallel()

	s := newShop(t)

	out, err := run(s, s.process.Place, created(`{"id":"o","product_id":"product_1","quantity":2,"total_amount":99.99}`))
	if err != nil {
		t.Fatal(err)
	}

	expect(t, s.status("o"), "inventory_reserved v2: OrderCreated InventoryReserved")
	expect(t, s.level(t, "product_1"), "98/2/0")

	if out, err = s.pay(out[0]); err != nil {
		t.Fatal(err)
	}

	expect(t, s.status("o"), "paid v3: OrderCreated InventoryReserved OrderPaid")

	completed := event.Event[fulfilment.OrderCompleted]{Meta: out[0].Meta, Payload: out[0].Payload.(fulfilment.OrderCompleted)} //nolint:forcetypeassert // a test
	for range 2 {                                                                                                               // the second time, under another id, changes nothing
		completed.ID = event.NewID()

		if _, err := run(s, s.process.Complete, completed, completed); err != nil {
			t.Fatal(err)
		}
	}

	expect(t, s.status("o"), "completed v4: OrderCreated InventoryReserved OrderPaid OrderCompleted")
	expect(t, s.level(t, "product_1"), "98/0/2")
}

func TestADeclinedPaymentGivesTheStockBack(t *testing.T) {
	t.Parallel()

	s := newShop(t)

	out, err := run(s, s.process.Place, created(`{"id":"o","items":[{"product_id":"product_1","quantity":2},{"product_id":"product_2","quantity":1},{"product_id":"product_1","quantity":1}],"total_amount":0,"currency":"EUR"}`))
	if err != nil {
		t.Fatal(err)
	}

	expect(t, s.level(t, "product_1"), "97/3/0")

	if out, err = s.pay(out[0]); err != nil {
		t.Fatal(err)
	}

	expect(t, s.status("o"), "payment_failed v3: OrderCreated InventoryReserved PaymentFailed")
	expect(t, s.level(t, "product_1")+" "+s.level(t, "product_2"), "100/0/0 50/0/0")
	expect(t, out[0].Payload.Topic(), fulfilment.TopicOrderRejected)
}

func TestAnOrderGetsAllLinesOrNone(t *testing.T) {
	t.Parallel()

	s := newShop(t)

	out, err := run(s, s.process.Place,
		created(`{"id":"a","items":[{"product_id":"product_3","quantity":20},{"product_id":"product_1","quantity":1}],"total_amount":1}`),
		created(`{"id":"b","items":[{"product_id":"product_3","quantity":6},{"product_id":"product_1","quantity":1}],"total_amount":1}`),
		created(`{"id":"c","product_id":"nothing","quantity":1,"total_amount":1}`))
	if err != nil {
		t.Fatal(err)
	}

	expect(t, s.status("a"), "inventory_reserved v2: OrderCreated InventoryReserved")
	expect(t, s.status("b"), "inventory_unavailable v2: OrderCreated InventoryUnavailable")
	expect(t, s.status("c"), "inventory_unavailable v2: OrderCreated InventoryUnavailable")
	expect(t, s.level(t, "product_3")+" "+s.level(t, "product_1"), "5/20/0 99/1/0")
	expect(t, fmt.Sprint(out[1].Payload), "{b inventory_unavailable 6 of product_3 requested, 5 available}")
	expect(t, fmt.Sprint(out[2].Payload), "{c inventory_unavailable 1 of nothing requested, 0 available}")
}

func TestAnOrderIDIsUsedOnce(t *testing.T) {
	t.Parallel()

	s := newShop(t)
	first := created(`{"id":"o","product_id":"product_1","quantity":2,"total_amount":10}`)
	same := created(`{"id":"o","items":[{"product_id":"product_1","quantity":2}],"total_amount":"10.00","currency":"USD"}`)
	other := created(`{"id":"o","product_id":"product_1","quantity":3,"total_amount":10}`)

	if _, err := run(s, s.process.Place, first, same); err != nil {
		t.Fatal(err)
	}

	out, err := run(s, s.process.Place, same)
	if err != nil || len(out) != 0 {
		t.Errorf("the same order again: %v, %v", out, err)
	}

	_, err = run(s, s.process.Place, same, other)

	var rejected event.RejectSome
	if !errors.As(err, &rejected) || len(rejected) != 1 || !strings.Contains(rejected[1].Error(), "order.id: o exists with a different body") {
		t.Errorf("another body: %v", err)
	}

	expect(t, s.level(t, "product_1"), "98/2/0")
}

func TestOnlyTheRightPaymentIsAdmitted(t *testing.T) {
	t.Parallel()

	s := newShop(t)
	if _, err := run(s, s.process.Place, created(`{"id":"o","product_id":"product_1","quantity":1,"total_amount":10}`)); err != nil {
		t.Fatal(err)
	}

	admit := func(body string) string {
		payload, err := event.Decode[fulfilment.PaymentRequested]([]byte(body))
		if err != nil {
			return err.Error()
		}

		verdicts, err := s.process.Admit(context.Background(), s.pool, []event.Event[fulfilment.PaymentRequested]{{Payload: payload}})
		if err != nil || verdicts[0] == nil {
			return fmt.Sprint(err)
		}

		return verdicts[0].Error()
	}

	expect(t, admit(`{"order_id":"o","amount":10.0}`), "<nil>")
	expect(t, admit(`{"order_id":"o","amount":5}`), "amount: is 5, expected the order's total 10")
	expect(t, admit(`{"order_id":"o","amount":10,"currency":"EUR"}`), "currency: is EUR, expected the order's USD")
	expect(t, admit(`{"order_id":"x","amount":10}`), "order_id: there is no order x")
	expect(t, admit(`{"order_id":"o"}`), "amount: is missing, expected a decimal number")
}

func TestAnOrderThatIsNotPaidCannotBeCompleted(t *testing.T) {
	t.Parallel()

	s := newShop(t)
	if _, err := run(s, s.process.Place, created(`{"id":"o","product_id":"product_1","quantity":1,"total_amount":10}`)); err != nil {
		t.Fatal(err)
	}

	_, err := run(s, s.process.Complete,
		event.Event[fulfilment.OrderCompleted]{Payload: fulfilment.OrderCompleted{OrderID: "o"}},
		event.Event[fulfilment.OrderCompleted]{Payload: fulfilment.OrderCompleted{OrderID: "x"}})

	var rejected event.RejectSome
	if !errors.As(err, &rejected) || len(rejected) != 2 {
		t.Fatalf("got %v", err)
	}

	expect(t, rejected[0].Error(), "order_id: order o is inventory_reserved: OrderCompleted cannot follow")
	expect(t, rejected[1].Error(), "order_id: there is no order x")
}

// placed creates an order that is waiting for payment, and returns the request.
func (s *shop) placed(tb testing.TB, id string) event.Event[fulfilment.PaymentRequested] {
	tb.Helper()

	out, err := run(s, s.process.Place, created(`{"id":"`+id+`","product_id":"product_1","quantity":2,"total_amount":10}`))
	if err != nil {
		tb.Fatal(err)
	}

	return event.Event[fulfilment.PaymentRequested]{Meta: out[0].Meta, Payload: out[0].Payload.(fulfilment.PaymentRequested)} //nolint:forcetypeassert // a test
}

func settled(e event.Event[fulfilment.PaymentRequested], transaction string) fulfilment.Charged {
	return fulfilment.Charged{Event: e, Result: &payment.Outcome{TransactionID: transaction}}
}

func TestABatchMayChangeAnOrderMoreThanOnce(t *testing.T) {
	t.Parallel()

	s := newShop(t)
	s.placed(t, "a")
	s.placed(t, "b")

	report := func(id string, outcome payment.Report) event.Event[payment.Reported] {
		amount := money.MustParse("10")

		return event.Event[payment.Reported]{Meta: event.Meta{ID: event.NewID()}, Payload: payment.Reported{
			OrderID: id, Outcome: outcome, TransactionID: "txn_" + id, RefundID: "ref_" + id, Amount: &amount, Currency: "USD", Reason: "no money",
		}}
	}

	out, err := run(s, s.process.Report,
		report("b", payment.ReportCaptured), report("a", payment.ReportDeclined), report("b", payment.ReportRefunded), report("a", payment.ReportCaptured))
	if err != nil {
		t.Fatal(err)
	}

	expect(t, s.status("a"), "payment_failed v4: OrderCreated InventoryReserved PaymentFailed PaymentCapturedLate")
	expect(t, s.status("b"), "cancelled v5: OrderCreated InventoryReserved OrderPaid OrderCancelled PaymentRefunded")
	expect(t, s.level(t, "product_1"), "100/0/0")
	expect(t, pgtest.Value[string](t, s.pool, `SELECT string_agg(order_id || ' ' || status || ' ' || transaction_id, ', ' ORDER BY order_id) FROM payments`),
		"a captured txn_a, b refunded txn_b")

	var topics []string
	for _, o := range out {
		topics = append(topics, o.Payload.Topic())
	}

	expect(t, strings.Join(topics, " "), "orders.completed orders.rejected orders.cancelled payments.refunded payments.refund.requested")
}

func TestNewsMayOvertakeTheirOrder(t *testing.T) {
	t.Parallel()

	s := newShop(t)
	cancel := event.Event[fulfilment.CancelRequested]{Payload: fulfilment.CancelRequested{OrderID: "o"}}

	verdicts, err := s.process.AdmitCancel(t.Context(), s.pool, []event.Event[fulfilment.CancelRequested]{cancel})
	if err != nil {
		t.Fatal(err)
	}

	amount := money.MustParse("10")
	_, err = run(s, s.process.Report, event.Event[payment.Reported]{Payload: payment.Reported{
		OrderID: "o", Outcome: payment.ReportCaptured, TransactionID: "t", Amount: &amount, Currency: "USD",
	}})

	var some event.RejectSome
	if !errors.As(err, &some) {
		t.Fatalf("got %v", err)
	}

	for _, err := range []error{verdicts[0], some[0]} {
		if _, early := errors.AsType[*event.EarlyError](err); !early {
			t.Errorf("%v: expected an error that awaits the order", err)
		}

		expect(t, err.Error(), "order_id: there is no order o yet; awaiting orders.created")
	}
}

func TestARefundGoesToTheRightCapture(t *testing.T) {
	t.Parallel()

	s := newShop(t)
	paid, cancelled := s.placed(t, "paid"), s.placed(t, "cancelled")

	if _, err := run(s, s.process.Settle, settled(paid, "t1"), settled(cancelled, "t2")); err != nil {
		t.Fatal(err)
	}

	cancel := fulfilment.CancelRequested{OrderID: "cancelled"}

	out, err := run(s, s.process.Cancel, event.Effected[fulfilment.CancelRequested, payment.Outcome]{Event: event.Event[fulfilment.CancelRequested]{Payload: cancel}})
	if err != nil || len(out) != 2 {
		t.Fatalf("got %v, %v", out, err)
	}

	admit := func(id, transaction, amount string) string {
		parsed := money.MustParse(amount)
		request := fulfilment.RefundRequested{OrderID: id, TransactionID: transaction, Amount: &parsed, Currency: "USD"}

		verdicts, err := s.process.AdmitRefund(t.Context(), s.pool, []event.Event[fulfilment.RefundRequested]{{Payload: request}})
		if err != nil {
			return err.Error()
		}

		return fmt.Sprint(verdicts[0])
	}

	expect(t, admit("cancelled", "t2", "10"), "<nil>")
	expect(t, admit("cancelled", "t2", "9"), "amount: is 9 USD, expected the order's total 10 USD")
	expect(t, admit("cancelled", "t1", "10"), "transaction_id: is t1, expected a capture of order cancelled")
	expect(t, admit("paid", "t1", "10"), "order_id: paid is paid, expected a cancelled order or a late capture")
	expect(t, admit("x", "t1", "10"), "order_id: there is no order x")

	refund := event.Event[fulfilment.RefundRequested]{Meta: out[1].Meta, Payload: out[1].Payload.(fulfilment.RefundRequested)} //nolint:forcetypeassert // a test
	id := "r"

	for range 2 { // a second one changes nothing
		if _, err := run(s, s.process.RecordRefund, event.Effected[fulfilment.RefundRequested, string]{Event: refund, Result: &id}); err != nil {
			t.Fatal(err)
		}
	}

	expect(t, admit("cancelled", "t2", "10"), event.ErrSkip.Error())
	expect(t, s.status("cancelled"), "cancelled v5: OrderCreated InventoryReserved OrderPaid OrderCancelled PaymentRefunded")

	// A final refusal stops the message, with the provider's reason.
	refusing := fulfilment.NewProcess(fulfilment.DefaultConfig(), s.orders, s.stock, newGateway(), s.undelivered)

	_, err = refusing.Refund(t.Context(), refund)
	if _, rejected := errors.AsType[*event.RejectError](err); !rejected || !strings.Contains(err.Error(), "the payment provider refused: there is no capture t2") {
		t.Errorf("got %v", err)
	}
}

func TestRestockingAddsAndCreates(t *testing.T) {
	t.Parallel()

	s := newShop(t)
	restocked := func(product string, quantity int64) event.Event[inventory.Restocked] {
		return event.Event[inventory.Restocked]{Payload: inventory.Restocked{ProductID: product, Quantity: &quantity}}
	}

	if _, err := run(s, s.stock.Restock, restocked("product_1", 5), restocked("new", 1), restocked("product_1", 2)); err != nil {
		t.Fatal(err)
	}

	expect(t, s.level(t, "product_1")+" "+s.level(t, "new"), "107/0/0 1/0/0")
}

// age moves the creation time of orders back.
func (s *shop) age(tb testing.TB, age string, ids ...string) {
	tb.Helper()

	if _, err := s.pool.Exec(tb.Context(), `UPDATE orders SET created_at = now() - $1::text::interval WHERE id = ANY($2)`, age, ids); err != nil {
		tb.Fatal(err)
	}
}

// unswept moves the sweep's cursor back by a day.
func (s *shop) unswept(tb testing.TB) {
	tb.Helper()

	if _, err := s.pool.Exec(tb.Context(), `UPDATE expiry_cursor SET at = now() - interval '1 day'`); err != nil {
		tb.Fatal(err)
	}
}

func (s *shop) sweep(tb testing.TB, timeout time.Duration) {
	tb.Helper()

	if err := fulfilment.NewSweeper(fulfilment.Config{PaymentTimeout: timeout}, s.pool, outbox.Append, running, pgtest.Logger(tb)).Sweep(tb.Context()); err != nil {
		tb.Fatal(err)
	}
}

// due returns the messages that say which orders are due.
func (s *shop) due(tb testing.TB) string {
	tb.Helper()

	return pgtest.Value[string](tb, s.pool, `SELECT coalesce(string_agg(convert_from(payload, 'UTF8'), ' ' ORDER BY seq), '') FROM outbox WHERE topic = 'orders.expiry.due'`)
}

func TestOnlyOrdersThatAreDueAndOpenExpire(t *testing.T) {
	t.Parallel()

	s := newShop(t)
	s.placed(t, "due")
	s.placed(t, "young")

	if _, err := run(s, s.process.Settle, settled(s.placed(t, "paid"), "t")); err != nil {
		t.Fatal(err)
	}

	s.unswept(t)
	s.age(t, "16 minutes", "due", "paid")
	s.age(t, "14 minutes", "young")

	for range 2 { // the second time there is nothing new
		s.sweep(t, 15*time.Minute)
		expect(t, s.due(t), `{"order_id":"due"}`)
	}

	s.sweep(t, 13*time.Minute)
	expect(t, s.due(t), `{"order_id":"due"} {"order_id":"young"}`)
}

func TestOneReplicaSweepsAtATime(t *testing.T) {
	t.Parallel()

	s := newShop(t)
	s.placed(t, "due")
	s.unswept(t)
	s.age(t, "16 minutes", "due")

	// Another replica has locked the cursor: it is sweeping.
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	if _, err := tx.Exec(t.Context(), `SELECT FROM expiry_cursor FOR UPDATE`); err != nil {
		t.Fatal(err)
	}

	s.sweep(t, 15*time.Minute)
	expect(t, s.due(t), "")

	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}

	s.sweep(t, 15*time.Minute)
	expect(t, s.due(t), `{"order_id":"due"}`)
}

// With a short timeout an order may become visible after the sweep has passed its
// position. The sweep still finds the order, and all its messages have the same id.
func TestTheSweepFindsAnOrderThatAppearsBehindIt(t *testing.T) {
	t.Parallel()

	s := newShop(t)
	s.unswept(t)
	s.placed(t, "first")
	s.age(t, "3 minutes", "first")
	s.sweep(t, time.Second)
	expect(t, s.due(t), `{"order_id":"first"}`)

	s.placed(t, "late")
	s.age(t, "4 minutes", "late")
	s.sweep(t, time.Second)
	s.sweep(t, time.Second)
	expect(t, pgtest.Value[string](t, s.pool, `SELECT string_agg(DISTINCT key || ' ' || message_id, ', ') FROM outbox WHERE key = 'late' AND topic = 'orders.expiry.due'`),
		"late "+event.ForeignID("orders.expiry.due", "late").String())
}

func TestTheSweepReadsManyOrdersPageByPage(t *testing.T) {
	t.Parallel()

	s := newShop(t)

	_, err := s.pool.Exec(t.Context(), `
		INSERT INTO orders (id, status, version, total_amount, currency, lines, created_at)
		SELECT 'o' || n, CASE WHEN n % 100 = 0 THEN 'inventory_reserved' ELSE 'completed' END, 2, 1, 'USD', '[{"product_id": "p", "quantity": 1}]',
		       now() - interval '1 hour' + (n / 7000) * interval '1 second'
		FROM generate_series(1, 20000) AS n`)
	if err != nil {
		t.Fatal(err)
	}

	s.unswept(t)
	s.sweep(t, fulfilment.DefaultConfig().PaymentTimeout)

	if n := pgtest.Value[int](t, s.pool, `SELECT count(DISTINCT key) FROM outbox`); n != 200 {
		t.Errorf("%d orders are due, expected 200", n)
	}

	if total := pgtest.Value[int](t, s.pool, `SELECT count(*) FROM outbox`); total != 200 {
		t.Errorf("%d messages, expected one per order", total)
	}
}

// TestAnOrderDecidedOnStockThatIsGoneIsDecidedAgain: two transactions read the last pieces
// of a product. The second one waits for the first and then starts again.
func TestAnOrderDecidedOnStockThatIsGoneIsDecidedAgain(t *testing.T) {
	t.Parallel()

	var (
		s      = newShop(t)
		body   = `{"id":"%s","items":[{"product_id":"product_3","quantity":20}],"total_amount":10}`
		winner = created(fmt.Sprintf(body, "winner"))
		loser  = created(fmt.Sprintf(body, "loser"))
	)

	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()

	if _, err := s.process.Place(t.Context(), tx, []event.Event[fulfilment.OrderCreated]{winner}); err != nil {
		t.Fatal(err)
	}

	result := make(chan error)
	go func() {
		_, err := run(s, s.process.Place, loser)
		result <- err
	}()

	pgtest.Eventually(t, "the second order waits for the first", pgtest.LockWaits(t, s.pool))

	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}

	if err := <-result; !postgres.IsContention(err) || !postgres.IsUnavailable(err) {
		t.Errorf("got %v, expected contention", err)
	}

	if _, err := run(s, s.process.Place, loser); err != nil {
		t.Fatal(err)
	}

	expect(t, s.status("winner"), "inventory_reserved v2: OrderCreated InventoryReserved")
	expect(t, s.status("loser"), "inventory_unavailable v2: OrderCreated InventoryUnavailable")
	expect(t, s.level(t, "product_3"), "5/20/0")
}
