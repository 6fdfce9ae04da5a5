// Package order is the life of an order: its states, the events between them
// and the table that holds the current state. It decides nothing about stock
// or payments; package fulfilment brings those together.
package order

import (
	"fmt"

	"github.com/millrace/millrace/internal/eventstore"
	"github.com/millrace/millrace/internal/money"
)

// Status is the state of an order.
type Status string

// States of an order. Completed, InventoryUnavailable and PaymentFailed are
// terminal.
const (
	StatusCreated              Status = "created"
	StatusInventoryReserved    Status = "inventory_reserved"
	StatusInventoryUnavailable Status = "inventory_unavailable"
	StatusPaid                 Status = "paid"
	StatusPaymentFailed        Status = "payment_failed"
	StatusCompleted            Status = "completed"
)

// Terminal reports whether nothing can follow.
func (s Status) Terminal() bool {
	return s == StatusInventoryUnavailable || s == StatusPaymentFailed || s == StatusCompleted
}

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
	}
	// PaymentFailed ends an order whose payment was declined.
	PaymentFailed struct {
		Reason string `json:"reason"`
	}
	// Completed ends an order whose goods are sold.
	Completed struct{}
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

// TransitionError says that an event cannot follow in the order's state.
type TransitionError struct {
	ID     string
	Status Status
	Event  string
}

func (e *TransitionError) Error() string {
	return fmt.Sprintf("order %s is %s: %s cannot follow", e.ID, e.Status, e.Event)
}

// Apply returns the order after the event, or a TransitionError.
func (o Order) Apply(data eventstore.Data) (Order, error) {
	next, ok := successor(o.Status, data)
	if !ok {
		return o, &TransitionError{ID: o.ID, Status: o.Status, Event: data.EventType()}
	}

	if created, isCreated := data.(Created); isCreated {
		o.Total, o.Currency, o.Lines = created.Total, created.Currency, created.Lines
	}

	o.Status = next
	o.Version++

	return o, nil
}

// successor is the state machine of an order; the empty status is that of an
// order which does not exist yet.
func successor(from Status, data eventstore.Data) (to Status, ok bool) {
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
	default:
		return from, false
	}
}
