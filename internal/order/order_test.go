package order_test

import (
	"errors"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/internal/eventstore"
	"github.com/millrace/millrace/internal/money"
	"github.com/millrace/millrace/internal/order"
)

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
	} {
		change, err := order.Evolve(order.Order{ID: "o"}, uuid.Nil, path.events...)
		if err != nil {
			t.Fatal(err)
		}

		if o := change.Order; o.Status != path.ends || !o.Status.Terminal() || o.Version != len(path.events) {
			t.Errorf("got %s at version %d, expected %s", o.Status, o.Version, path.ends)
		}
	}
}

func TestNoEventFollowsAnEnd(t *testing.T) {
	t.Parallel()

	all := []eventstore.Data{
		order.Created{}, order.InventoryReserved{}, order.InventoryUnavailable{}, order.Paid{}, order.PaymentFailed{}, order.Completed{},
	}

	rapid.Check(t, func(t *rapid.T) {
		o := order.Order{ID: "o"}
		applied := 0

		for _, data := range rapid.SliceOf(rapid.SampledFrom(all)).Draw(t, "events") {
			next, err := o.Apply(data)

			var refused *order.TransitionError

			switch {
			case err == nil && o.Status.Terminal():
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
