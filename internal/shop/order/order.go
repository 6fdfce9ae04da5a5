// Package order is the life of an order: its states, the events between them
// and the table that holds the current state. It decides nothing about stock
// or payments; package fulfilment brings those together.
package order

import (
	"fmt"
	"slices"

	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/shop/money"
)

// Status is the state of an order.
type Status string

// States of an order. All but the first three are ends: see Terminal.
const (
	StatusCreated              Status = "created"
	StatusInventoryReserved    Status = "inventory_reserved"
	StatusPaid                 Status = "paid"
	StatusCompleted            Status = "completed"
	StatusInventoryUnavailable Status = "inventory_unavailable"
	StatusPaymentFailed        Status = "payment_failed"
	StatusExpired              Status = "expired"
	StatusCancelled            Status = "cancelled"
)

// Terminal reports whether no other state can follow.
func (s Status) Terminal() bool {
	switch s {
	case StatusCompleted, StatusInventoryUnavailable, StatusPaymentFailed, StatusExpired, StatusCancelled:
		return true
	default:
		return false
	}
}

// HoldsStock reports whether stock is reserved for an order in this state.
func (s Status) HoldsStock() bool { return s == StatusInventoryReserved || s == StatusPaid }

// Line is a quantity of one product.
type Line struct {
	ProductID string `json:"product_id"`
	Quantity  int64  `json:"quantity"`
}

// Order is the state of an order.
type Order struct {
	ID       string       `json:"id"`
	Status   Status       `json:"status"`
	Version  int          `json:"version"`
	Total    money.Amount `json:"total_amount"`
	Currency string       `json:"currency"`
	Lines    []Line       `json:"lines"`
	// Captures is the money that was taken, in order. Only the fold of the
	// whole stream knows it: see Service.Recall.
	Captures []Capture `json:"captures,omitempty"`
}

// Capture is money that was taken for an order.
type Capture struct {
	TransactionID string `json:"transaction_id"`
	// Late says that the order was not waiting for it: it has to be given back.
	Late bool `json:"late,omitempty"`
	// RefundID is empty until it was given back.
	RefundID string `json:"refund_id,omitempty"`
}

// Capture returns the capture of a transaction.
func (o Order) Capture(transactionID string) (found Capture, known bool) {
	for _, c := range o.Captures {
		if c.TransactionID == transactionID {
			return c, true
		}
	}

	return Capture{}, false
}

// Same reports whether two orders ask for the same thing.
func (o Order) Same(other Order) bool {
	if o.ID != other.ID || o.Currency != other.Currency || !o.Total.Equal(other.Total) || len(o.Lines) != len(other.Lines) {
		return false
	}

	for i := range o.Lines {
		if o.Lines[i] != other.Lines[i] {
			return false
		}
	}

	return true
}

// Stream names the stream of the order with this id.
func Stream(id string) string { return "order-" + id }

// Events of the stream order-<id>.
type (
	// Created begins every stream.
	Created struct {
		Total    money.Amount `json:"total_amount"`
		Currency string       `json:"currency"`
		Lines    []Line       `json:"lines"`
	}
	// InventoryReserved says that stock is held for every line.
	InventoryReserved struct{}
	// InventoryUnavailable ends an order for which there was too little stock.
	InventoryUnavailable struct {
		ProductID string `json:"product_id"`
		Requested int64  `json:"requested"`
		Available int64  `json:"available"`
	}
	// Paid says that the total was captured.
	Paid struct {
		TransactionID string `json:"transaction_id"`
		// Attempt counts the charges; 0 means 1.
		Attempt int `json:"attempt,omitempty"`
	}
	// PaymentFailed ends an order whose payment was declined.
	PaymentFailed struct {
		Reason  string `json:"reason"`
		Attempt int    `json:"attempt,omitempty"`
	}
	// Completed ends an order whose goods are sold.
	Completed struct{}
	// Expired ends an order that was not paid in time.
	Expired struct{}
	// Cancelled ends an order that was called off.
	Cancelled struct {
		Reason string `json:"reason,omitempty"`
	}
	// CapturedLate says that money was taken for an order that did not wait
	// for it any more.
	CapturedLate struct {
		TransactionID string `json:"transaction_id"`
		Attempt       int    `json:"attempt,omitempty"`
	}
	// PaymentRefunded says that a capture was given back.
	PaymentRefunded struct {
		TransactionID string `json:"transaction_id"`
		RefundID      string `json:"refund_id"`
	}
)

// EventType names the type in the store.
func (Created) EventType() string { return "OrderCreated" }

// EventType names the type in the store.
func (InventoryReserved) EventType() string { return "InventoryReserved" }

// EventType names the type in the store.
func (InventoryUnavailable) EventType() string { return "InventoryUnavailable" }

// EventType names the type in the store.
func (Paid) EventType() string { return "OrderPaid" }

// EventType names the type in the store.
func (PaymentFailed) EventType() string { return "PaymentFailed" }

// EventType names the type in the store.
func (Completed) EventType() string { return "OrderCompleted" }

// EventType names the type in the store.
func (Expired) EventType() string { return "OrderExpired" }

// EventType names the type in the store.
func (Cancelled) EventType() string { return "OrderCancelled" }

// EventType names the type in the store.
func (CapturedLate) EventType() string { return "PaymentCapturedLate" }

// EventType names the type in the store.
func (PaymentRefunded) EventType() string { return "PaymentRefunded" }

var types = func() eventstore.Types {
	t := eventstore.Types{}
	eventstore.Register[Created](t)
	eventstore.Register[InventoryReserved](t)
	eventstore.Register[InventoryUnavailable](t)
	eventstore.Register[Paid](t)
	eventstore.Register[PaymentFailed](t)
	eventstore.Register[Completed](t)
	eventstore.Register[Expired](t)
	eventstore.Register[Cancelled](t)
	eventstore.Register[CapturedLate](t)
	eventstore.Register[PaymentRefunded](t)

	return t
}()

// TransitionError says that an event cannot follow in the order's state.
type TransitionError struct {
	ID     string
	Status Status
	Event  string
}

func (e *TransitionError) Error() string {
	return fmt.Sprintf("order %s is %s: %s cannot follow", e.ID, e.Status, e.Event)
}

// Apply returns the order after the event, or a TransitionError. It says what
// an event means, not when it happens: that is decided in package fulfilment.
func (o Order) Apply(data eventstore.Data) (Order, error) {
	next, ok := o.successor(data)
	if !ok {
		return o, &TransitionError{ID: o.ID, Status: o.Status, Event: data.EventType()}
	}

	switch data := data.(type) {
	case Created:
		o.Total, o.Currency, o.Lines = data.Total, data.Currency, data.Lines
	case Paid:
		o.Captures = append(slices.Clip(o.Captures), Capture{TransactionID: data.TransactionID})
	case CapturedLate:
		o.Captures = append(slices.Clip(o.Captures), Capture{TransactionID: data.TransactionID, Late: true})
	case PaymentRefunded:
		o.Captures = slices.Clone(o.Captures)
		for i := range o.Captures {
			if o.Captures[i].TransactionID == data.TransactionID {
				o.Captures[i].RefundID = data.RefundID
			}
		}
	}

	o.Status = next
	o.Version++

	return o, nil
}

// successor is the state after the event, if it may follow; the empty status
// is that of an order which does not exist yet.
func (o Order) successor(data eventstore.Data) (to Status, ok bool) {
	from := o.Status

	switch data := data.(type) {
	case Created:
		return StatusCreated, from == ""
	case InventoryReserved:
		return StatusInventoryReserved, from == StatusCreated
	case InventoryUnavailable:
		return StatusInventoryUnavailable, from == StatusCreated
	case Paid:
		return StatusPaid, from == StatusInventoryReserved
	case PaymentFailed:
		return StatusPaymentFailed, from == StatusInventoryReserved
	case Completed:
		return StatusCompleted, from == StatusPaid
	case Expired:
		return StatusExpired, from == StatusInventoryReserved
	case Cancelled:
		return StatusCancelled, from.HoldsStock()
	case CapturedLate:
		_, known := o.Capture(data.TransactionID)

		return from, !known && (from == StatusPaid || from.Terminal())
	case PaymentRefunded:
		capture, known := o.Capture(data.TransactionID)

		return from, known && capture.RefundID == ""
	default:
		return from, false
	}
}

// Fold returns the order after the events of its stream.
func Fold(id string, events []eventstore.Event) (Order, error) {
	o := Order{ID: id}

	for _, e := range events {
		data, err := types.Decode(e)
		if err != nil {
			return o, err
		}

		if o, err = o.Apply(data); err != nil {
			return o, fmt.Errorf("folding version %d of stream %s: %w", e.Version, e.Stream, err)
		}
	}

	return o, nil
}
