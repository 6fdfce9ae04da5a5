// Package order defines the states of an order and the events between them, and
// stores both. It makes no decisions about stock or payments: package fulfilment
// does.
package order

import (
	"fmt"
	"slices"

	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/shop/money"
)

// Status is the state of an order.
type Status string

// States of an order. The last five are final: see Terminal.
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

// Statuses lists all statuses.
var Statuses = []Status{
	StatusCreated, StatusInventoryReserved, StatusPaid, StatusCompleted, StatusInventoryUnavailable, StatusPaymentFailed, StatusExpired, StatusCancelled,
}

// Terminal reports whether the state is final.
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
	// Captures are the captured payments, in order. Only a fold of the whole
	// stream has them: see Service.Recall.
	Captures []Capture `db:"-" json:"captures,omitempty"`
}

// Capture is a payment that was captured for an order.
type Capture struct {
	TransactionID string `json:"transaction_id"`
	// Late means that the order was not waiting for it, so it must be refunded.
	Late bool `json:"late,omitempty"`
	// RefundID is empty until the capture is refunded, and empty again if the refund
	// fails.
	RefundID string `json:"refund_id,omitempty"`
	// FailedRefundID is the last refund that failed.
	FailedRefundID string `json:"failed_refund_id,omitempty"`
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

// Owes reports whether a capture must be refunded.
func (o Order) Owes(c Capture) bool { return c.Late || o.Status == StatusCancelled }

// Same reports whether two orders request the same purchase.
func (o Order) Same(other Order) bool {
	return o.ID == other.ID && o.Currency == other.Currency && o.Total.Equal(other.Total) && slices.Equal(o.Lines, other.Lines)
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
	// InventoryReserved means that stock has been reserved for all lines.
	InventoryReserved struct{}
	// InventoryUnavailable ends an order that exceeds the stock.
	InventoryUnavailable struct {
		ProductID string `json:"product_id"`
		Requested int64  `json:"requested"`
		Available int64  `json:"available"`
	}
	// Paid means that the total has been captured.
	Paid struct {
		TransactionID string `json:"transaction_id"`
		// Attempt is the number of the charge. Defaults to 1.
		Attempt int `json:"attempt,omitempty"`
	}
	// PaymentFailed ends an order whose payment was declined.
	PaymentFailed struct {
		Reason  string `json:"reason"`
		Attempt int    `json:"attempt,omitempty"`
	}
	// Completed ends an order whose stock is sold.
	Completed struct{}
	// Expired ends an order that was not paid in time.
	Expired struct{}
	// Cancelled ends an order on request.
	Cancelled struct {
		Reason string `json:"reason,omitempty"`
	}
	// CapturedLate means that a payment was captured for an order that was no longer
	// waiting for it.
	CapturedLate struct {
		TransactionID string `json:"transaction_id"`
		Attempt       int    `json:"attempt,omitempty"`
	}
	// PaymentRefunded means that a capture has been refunded.
	PaymentRefunded struct {
		TransactionID string `json:"transaction_id"`
		RefundID      string `json:"refund_id"`
	}
	// RefundFailed means that a refund failed after the provider had accepted it.
	RefundFailed struct {
		TransactionID string `json:"transaction_id"`
		RefundID      string `json:"refund_id"`
		Reason        string `json:"reason"`
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

// EventType names the type in the store.
func (RefundFailed) EventType() string { return "PaymentRefundFailed" }

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
	eventstore.Register[RefundFailed](t)

	return t
}()

// TransitionError means that an event is not possible in the order's state.
type TransitionError struct {
	ID     string
	Status Status
	Event  string
}

func (e *TransitionError) Error() string {
	return fmt.Sprintf("order %s is %s: %s cannot follow", e.ID, e.Status, e.Event)
}

// Apply returns the order after the event, or a TransitionError. It defines
// what an event means; package fulfilment decides when it happens.
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
		o.Captures = changed(o.Captures, data.TransactionID, func(c *Capture) { c.RefundID = data.RefundID })
	case RefundFailed:
		o.Captures = changed(o.Captures, data.TransactionID, func(c *Capture) { c.RefundID, c.FailedRefundID = "", data.RefundID })
	}

	o.Status = next
	o.Version++

	return o, nil
}

// changed returns a copy of captures in which the capture of a transaction is changed.
func changed(captures []Capture, transaction string, change func(*Capture)) []Capture {
	captures = slices.Clone(captures)

	for i := range captures {
		if captures[i].TransactionID == transaction {
			change(&captures[i])
		}
	}

	return captures
}

// successor returns the state after the event; ok is false if the event is not
// possible. An order that does not exist yet has the empty status.
func (o Order) successor(data eventstore.Data) (to Status, ok bool) {
	from := o.Status

	switch data.(type) {
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
	default:
		return from, o.money(data)
	}
}

// money reports whether an event about a capture is possible. Such an event does not
// change the status.
func (o Order) money(data eventstore.Data) bool {
	switch data := data.(type) {
	case CapturedLate:
		_, known := o.Capture(data.TransactionID)

		return !known && (o.Status == StatusPaid || o.Status.Terminal())
	case PaymentRefunded:
		capture, known := o.Capture(data.TransactionID)

		return known && capture.RefundID == ""
	case RefundFailed:
		capture, known := o.Capture(data.TransactionID)

		return known && (capture.RefundID == "" || capture.RefundID == data.RefundID)
	default:
		return false
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
