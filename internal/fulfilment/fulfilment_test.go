package fulfilment_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/internal/event"
	"github.com/millrace/millrace/internal/fulfilment"
	"github.com/millrace/millrace/internal/inventory"
	"github.com/millrace/millrace/internal/order"
	"github.com/millrace/millrace/internal/payment"
	"github.com/millrace/millrace/internal/pgtest"
	"github.com/millrace/millrace/internal/postgres"
)

// shop is the process on a database with the guide's stock.
type shop struct {
	pool    *pgxpool.Pool
	process *fulfilment.Process
	orders  *order.Service
	stock   *inventory.Service
}

func newShop(tb testing.TB) *shop {
	tb.Helper()

	pool := pgtest.New(tb)
	s := &shop{pool: pool, orders: order.NewService(pool), stock: inventory.NewService(pool)}
	s.process = fulfilment.NewProcess(s.orders, s.stock, payment.NewService(payment.NewSimulated()))

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
	for range 2 {                                                                                                               // the second time under another id changes nothing
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
	expect(t, fmt.Sprint(out[1].Payload), "{b inventory_unavailable 6 of product_3 wanted, 5 available}")
	expect(t, fmt.Sprint(out[2].Payload), "{c inventory_unavailable 1 of nothing wanted, 0 available}")
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
	if !errors.As(err, &rejected) || len(rejected) != 1 || !strings.Contains(rejected[1].Error(), "order.id: o exists with another body") {
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

// Whatever the mix of orders, repetitions and batches: stock adds up, and the
// stored state is the fold of the stored events.
func TestInvariantsHoldForAnyMixOfOrders(t *testing.T) {
	t.Parallel()

	rapid.Check(t, func(rt *rapid.T) {
		s := newShop(t)
		bodies := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
			return fmt.Sprintf(`{"id":"o%d","product_id":%q,"quantity":%d,"total_amount":%d}`,
				rapid.IntRange(0, 9).Draw(t, "id"), rapid.SampledFrom([]string{"product_2", "product_3", "none"}).Draw(t, "product"),
				rapid.SampledFrom([]int{1, 10, 20}).Draw(t, "quantity"), rapid.IntRange(0, 1).Draw(t, "amount"))
		}), 1, 15).Draw(rt, "orders")

		first := map[string]string{}

		for _, body := range bodies {
			e := created(body)
			id := e.Payload.Order.ID

			out, err := run(s, s.process.Place, e)
			if original, known := first[id]; known && original != body {
				if err == nil {
					rt.Fatalf("%s replaced %s", body, original)
				}

				continue
			} else if err != nil {
				rt.Fatal(err)
			}

			first[id] = body

			for _, o := range out {
				if o.Payload.Topic() != fulfilment.TopicPaymentRequested {
					continue
				}

				for range rapid.IntRange(1, 2).Draw(rt, "deliveries") {
					if _, err := s.pay(o); err != nil {
						rt.Fatal(err)
					}
				}
			}
		}

		for _, product := range []string{"product_2", "product_3"} {
			list, err := s.stock.List(context.Background(), product)
			if err != nil {
				rt.Fatal(err)
			}

			held := pgtest.Value[int64](t, s.pool, `SELECT COALESCE(sum((l ->> 'quantity')::bigint), 0)::bigint FROM orders, jsonb_array_elements(lines) AS l
				WHERE status IN ('inventory_reserved', 'paid') AND l ->> 'product_id' = $1`, product)
			if list[0].Reserved != held {
				rt.Fatalf("%s: %d reserved, orders hold %d", product, list[0].Reserved, held)
			}
		}

		for _, id := range slices.Sorted(maps.Keys(first)) {
			details, err := s.orders.Show(context.Background(), id)
			if err != nil || details.Version != len(details.History) {
				rt.Fatalf("%s is at version %d with %d events, %v", id, details.Version, len(details.History), err)
			}
		}
	})
}
