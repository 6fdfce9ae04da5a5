package order_test

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/order"
)

func apply(o order.Order, events ...eventstore.Data) (order.Order, error) {
	for _, data := range events {
		next, err := o.Apply(data)
		if err != nil {
			return o, err
		}

		o = next
	}

	return o, nil
}

func TestStateMachine(t *testing.T) {
	t.Parallel()

	created := order.Created{Total: money.MustParse("1"), Currency: "USD", Lines: []order.Line{{ProductID: "p", Quantity: 1}}}

	for _, path := range []struct {
		events []eventstore.Data
		ends   order.Status
	}{
		{[]eventstore.Data{created, order.InventoryReserved{}, order.Paid{}, order.Completed{}}, order.StatusCompleted},
		{[]eventstore.Data{created, order.InventoryReserved{}, order.PaymentFailed{}}, order.StatusPaymentFailed},
		{[]eventstore.Data{created, order.InventoryUnavailable{}}, order.StatusInventoryUnavailable},
		{[]eventstore.Data{created, order.InventoryReserved{}, order.Expired{}}, order.StatusExpired},
		{[]eventstore.Data{created, order.InventoryReserved{}, order.Cancelled{}}, order.StatusCancelled},
		{[]eventstore.Data{created, order.InventoryReserved{}, order.Paid{TransactionID: "t"}, order.Cancelled{}, order.PaymentRefunded{TransactionID: "t"}}, order.StatusCancelled},
	} {
		o, err := apply(order.Order{ID: "o"}, path.events...)
		if err != nil {
			t.Fatal(err)
		}

		if o.Status != path.ends || !o.Status.Terminal() || o.Version != len(path.events) {
			t.Errorf("got %s at version %d, expected %s", o.Status, o.Version, path.ends)
		}
	}
}

func TestCapturesAndRefundsAreRecordedOnce(t *testing.T) {
	t.Parallel()

	paid, err := apply(order.Order{ID: "o"}, order.Created{}, order.InventoryReserved{}, order.Paid{TransactionID: "t"})
	if err != nil {
		t.Fatal(err)
	}

	for _, events := range [][]eventstore.Data{
		{order.CapturedLate{TransactionID: "t"}},
		{order.CapturedLate{TransactionID: "u"}, order.CapturedLate{TransactionID: "u"}},
		{order.PaymentRefunded{TransactionID: "u", RefundID: "r"}},
		{order.PaymentRefunded{TransactionID: "t", RefundID: "r"}, order.PaymentRefunded{TransactionID: "t", RefundID: "r"}},
	} {
		_, err := apply(paid, events...)

		if _, refused := errors.AsType[*order.TransitionError](err); !refused {
			t.Errorf("%+v after the capture of t: got %v, expected a TransitionError", events, err)
		}
	}

	refunded, err := apply(paid, order.CapturedLate{TransactionID: "u"}, order.PaymentRefunded{TransactionID: "u", RefundID: "r"})
	want := []order.Capture{{TransactionID: "t"}, {TransactionID: "u", Late: true, RefundID: "r"}}

	if err != nil || !slices.Equal(refunded.Captures, want) || len(paid.Captures) != 1 {
		t.Errorf("got %+v and %v, and %+v before, expected %+v", refunded.Captures, err, paid.Captures, want)
	}
}

func TestFinalStatesDoNotChange(t *testing.T) {
	t.Parallel()

	all := []eventstore.Data{
		order.Created{}, order.InventoryReserved{}, order.InventoryUnavailable{}, order.Paid{}, order.PaymentFailed{}, order.Completed{},
		order.Expired{}, order.Cancelled{}, order.CapturedLate{TransactionID: "late"}, order.PaymentRefunded{TransactionID: "late", RefundID: "r"},
	}

	rapid.Check(t, func(t *rapid.T) {
		o := order.Order{ID: "o"}
		applied := 0

		for _, data := range rapid.SliceOf(rapid.SampledFrom(all)).Draw(t, "events") {
			next, err := o.Apply(data)

			var refused *order.TransitionError

			switch {
			case err == nil && o.Status.Terminal() && next.Status != o.Status:
				t.Fatalf("%s followed %s", data.EventType(), o.Status)
			case err == nil:
				applied++
			case !errors.As(err, &refused) || next.Status != o.Status || next.Version != o.Version:
				t.Fatalf("a refused event changed the order: %v, %+v", err, next)
			}

			o = next
		}

		if o.Version != applied {
			t.Fatalf("version %d after %d events", o.Version, applied)
		}
	})
}
