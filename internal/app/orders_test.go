package app_test

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/test/apptest"
)

// reserve inserts an order that is waiting for payment, without requesting the payment.
func reserve(t *testing.T, s *apptest.Service, id string) {
	t.Helper()

	created := order.Created{Total: money.MustParse("0"), Currency: "USD", Lines: []order.Line{{ProductID: "product_1", Quantity: 3}}}
	change := order.Change{
		Order: order.Order{
			ID: id, Status: order.StatusInventoryReserved, Version: 2, Total: created.Total, Currency: created.Currency, Lines: created.Lines,
		},
		Events:    []eventstore.Data{created, order.InventoryReserved{}},
		MessageID: event.NewID(),
	}

	writes := &pgx.Batch{}
	err := s.Orders.Insert(writes, []order.Change{change})
	s.Inventory.Reserve(writes, []inventory.Demand{{"product_1": 3}})

	if err := errors.Join(err, s.Pool.SendBatch(t.Context(), writes).Close()); err != nil {
		t.Fatal(err)
	}
}

func TestAnUnpaidOrderExpires(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t, func(c *config.Config) { c.Fulfilment.PaymentTimeout = time.Second })
	s.Seed()
	reserve(t, s, "unpaid")

	expired := s.Messages("orders.expired", 1)
	if got := expired[0].Fields()["order_id"]; got != "unpaid" {
		t.Errorf("got %v", got)
	}

	s.WaitForOrder("unpaid", "expired")

	if n := apptest.Value[int64](s, `SELECT available FROM stock WHERE product_id = 'product_1'`); n != 100 {
		t.Errorf("%d available, expected all 100", n)
	}
}

func TestAnOrderCanBeCancelledUntilItIsCompleted(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.Seed()
	reserve(t, s, "waiting")

	s.Publish("orders.cancel.requested", `{"order_id":"waiting","reason":"changed my mind"}`)

	if got := s.Messages("orders.cancelled", 1)[0].Fields(); got["order_id"] != "waiting" || got["reason"] != "changed my mind" {
		t.Errorf("got %v", got)
	}

	s.WaitForOrder("waiting", "cancelled")

	s.Publish("orders.created", `{"order":{"id":"done","product_id":"product_1","quantity":2,"total_amount":5}}`)
	s.WaitForOrder("done", "completed")
	s.Publish("orders.cancel.requested", `{"order_id":"done"}`)

	if got := s.Messages("orders.cancel.refused", 1)[0].Fields(); got["order_id"] != "done" || got["reason"] != "completed" {
		t.Errorf("got %v", got)
	}

	s.Publish("inventory.restocked", `{"product_id":"product_1","quantity":7}`)
	s.WaitUntilIdle()

	if n := apptest.Value[int64](s, `SELECT available FROM stock WHERE product_id = 'product_1'`); n != 105 {
		t.Errorf("%d available, expected 100 - 2 + 7", n)
	}

	if n := apptest.Value[int64](s, `SELECT count(*) FROM failed_messages`); n != 0 {
		t.Errorf("%d messages failed", n)
	}
}
