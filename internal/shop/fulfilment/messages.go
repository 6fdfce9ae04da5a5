package fulfilment

import (
	"errors"
	"fmt"
	"slices"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// Topics of the order process.
const (
	TopicOrderCreated     = "orders.created"
	TopicPaymentRequested = "payments.requested"
	TopicOrderCompleted   = "orders.completed"
	TopicOrderRejected    = "orders.rejected"
	TopicCancelRequested  = "orders.cancel.requested"
	TopicCancelRefused    = "orders.cancel.refused"
	TopicOrderCancelled   = "orders.cancelled"
	TopicExpiryDue        = "orders.expiry.due"
	TopicOrderExpired     = "orders.expired"
	TopicRefundRequested  = "payments.refund.requested"
	TopicPaymentRefunded  = "payments.refunded"
	TopicRefundFailed     = "payments.refund.failed"
)

// Limits on an order.
const (
	maxItems  = 1000
	maxReason = 500 // characters
)

// OrderCreated requests a new order. It has one product, or several items.
type OrderCreated struct {
	Order NewOrder `doc:"The new order." json:"order"`
}

// NewOrder is the body of OrderCreated. Pointers distinguish a missing field
// from a zero one.
type NewOrder struct {
	ID          string         `doc:"The id of the order, chosen by the shop."                                   format:"id"                   json:"id"`
	ProductID   string         `doc:"The product of an order with one product."                                  format:"id"                   json:"product_id,omitempty"`
	Quantity    *int64         `doc:"Its quantity."                                                              json:"quantity,omitempty"     maximum:"1000000000"        minimum:"1"`
	Items       []Item         `doc:"The products of an order with several, instead of product_id and quantity." json:"items,omitempty"        maxItems:"1000"`
	TotalAmount *money.Amount  `doc:"What the order costs."                                                      json:"total_amount,omitempty" required:"true"`
	Currency    money.Currency `doc:"A currency of ISO 4217. No field means USD."                                format:"currency"             json:"currency,omitempty"`
}

// Item is a quantity of one product.
type Item struct {
	ProductID string `doc:"The product."  format:"id"     json:"product_id"`
	Quantity  *int64 `doc:"Its quantity." json:"quantity" maximum:"1000000000" minimum:"1"`
}

// Topic implements event.Payload.
func (OrderCreated) Topic() string { return TopicOrderCreated }

// Key implements event.Payload.
func (p OrderCreated) Key() string { return p.Order.ID }

// Validate implements event.Payload.
func (p OrderCreated) Validate() error {
	o := p.Order
	errs := []error{event.CheckID("order.id", o.ID)}

	switch {
	case len(o.Items) > maxItems:
		errs = append(errs, fmt.Errorf("order.items: has %d elements, expected at most %d", len(o.Items), maxItems))
	case len(o.Items) > 0 && (o.ProductID != "" || o.Quantity != nil):
		errs = append(errs, errors.New("order.items: cannot be combined with order.product_id, expected one of them"))
	case len(o.Items) > 0:
		for i, item := range o.Items {
			errs = append(errs, inventory.CheckItem(fmt.Sprintf("order.items[%d].", i), item.ProductID, item.Quantity))
		}
	default:
		errs = append(errs, inventory.CheckItem("order.", o.ProductID, o.Quantity))
	}

	return errors.Join(append(errs, money.Check("order.total_amount", o.TotalAmount, o.Currency.Code()))...)
}

// lines returns one line per product, in order of appearance.
func (o NewOrder) lines() []order.Line {
	if len(o.Items) == 0 {
		return []order.Line{{ProductID: o.ProductID, Quantity: *o.Quantity}}
	}

	var lines []order.Line

	for _, item := range o.Items {
		at := slices.IndexFunc(lines, func(l order.Line) bool { return l.ProductID == item.ProductID })
		if at < 0 {
			at = len(lines)
			lines = append(lines, order.Line{ProductID: item.ProductID})
		}

		lines[at].Quantity += *item.Quantity
	}

	return lines
}

// PaymentRequested requests a charge for an order.
type PaymentRequested struct {
	OrderID  string         `doc:"The order."                                  format:"id"       json:"order_id"`
	Amount   *money.Amount  `doc:"The amount."                                 json:"amount"`
	Currency money.Currency `doc:"A currency of ISO 4217. No field means USD." format:"currency" json:"currency,omitempty"`
	// Attempt is the number of the charge, counted from 1; 0 means 1.
	Attempt int `doc:"The number of the charge, from 1; 0 means 1." json:"attempt,omitzero" maximum:"1000" minimum:"0"`

	// late is set by Admit when the order is no longer waiting for the charge. The
	// charge is then looked up, not made.
	late bool
}

// Topic implements event.Payload.
func (PaymentRequested) Topic() string { return TopicPaymentRequested }

// Key implements event.Payload.
func (p PaymentRequested) Key() string { return p.OrderID }

// Validate implements event.Payload.
func (p PaymentRequested) Validate() error {
	return errors.Join(event.CheckID("order_id", p.OrderID), money.Check("amount", p.Amount, p.Currency.Code()),
		check.Value(p.Attempt >= 0 && p.Attempt <= 1000, "attempt", p.Attempt, "1 to 1000"))
}

// OrderCompleted reports that an order is paid and complete.
type OrderCompleted struct {
	OrderID string `doc:"The order." format:"id" json:"order_id"`
}

// Topic implements event.Payload.
func (OrderCompleted) Topic() string { return TopicOrderCompleted }

// Key implements event.Payload.
func (p OrderCompleted) Key() string { return p.OrderID }

// Validate implements event.Payload.
func (p OrderCompleted) Validate() error { return event.CheckID("order_id", p.OrderID) }

// OrderRejected reports that an order ended without a sale.
type OrderRejected struct {
	OrderID string `doc:"The order." format:"id" json:"order_id"`
	// Reason is the order's final status.
	Reason order.Status `doc:"The final status of the order." enum:"inventory_unavailable,payment_failed" json:"reason"`
	// Detail explains the rejection to people.
	Detail string `doc:"Explains the rejection to people." json:"detail"`
}

// Topic implements event.Payload.
func (OrderRejected) Topic() string { return TopicOrderRejected }

// Key implements event.Payload.
func (p OrderRejected) Key() string { return p.OrderID }

// Validate implements event.Payload.
func (p OrderRejected) Validate() error { return event.CheckID("order_id", p.OrderID) }

// CancelRequested requests the cancellation of an order.
type CancelRequested struct {
	OrderID string `doc:"The order." format:"id" json:"order_id"`
	// Reason explains the cancellation to people.
	Reason string `doc:"Explains the cancellation to people." format:"text" json:"reason,omitempty" maxLength:"500"`

	// charge is set by AdmitCancel: the charge to look up.
	charge payment.Charge
}

// Topic implements event.Payload.
func (CancelRequested) Topic() string { return TopicCancelRequested }

// Key implements event.Payload.
func (p CancelRequested) Key() string { return p.OrderID }

// HasFreeText implements event.FreeText.
func (CancelRequested) HasFreeText() {}

// Validate implements event.Payload.
func (p CancelRequested) Validate() error {
	return errors.Join(event.CheckID("order_id", p.OrderID), event.CheckText("reason", p.Reason, maxReason))
}

// CancelRefused reports that an order could not be cancelled.
type CancelRefused struct {
	OrderID string `doc:"The order." format:"id" json:"order_id"`
	// Reason is the order's final status.
	Reason order.Status `doc:"The final status of the order." enum:"completed,inventory_unavailable,payment_failed,expired,cancelled" json:"reason"`
}

// Topic implements event.Payload.
func (CancelRefused) Topic() string { return TopicCancelRefused }

// Key implements event.Payload.
func (p CancelRefused) Key() string { return p.OrderID }

// Validate implements event.Payload.
func (p CancelRefused) Validate() error { return event.CheckID("order_id", p.OrderID) }

// OrderCancelled reports that an order has been cancelled.
type OrderCancelled struct {
	OrderID string `doc:"The order."                           format:"id"   json:"order_id"`
	Reason  string `doc:"Explains the cancellation to people." format:"text" json:"reason,omitempty" maxLength:"500"`
}

// Topic implements event.Payload.
func (OrderCancelled) Topic() string { return TopicOrderCancelled }

// Key implements event.Payload.
func (p OrderCancelled) Key() string { return p.OrderID }

// HasFreeText implements event.FreeText.
func (OrderCancelled) HasFreeText() {}

// Validate implements event.Payload.
func (p OrderCancelled) Validate() error {
	return errors.Join(event.CheckID("order_id", p.OrderID), event.CheckText("reason", p.Reason, maxReason))
}

// ExpiryDue reports that an order's payment timeout has passed; see Sweeper.
type ExpiryDue struct {
	OrderID string `doc:"The order." format:"id" json:"order_id"`

	// charge is set by AdmitExpiry: the charge to look up.
	charge payment.Charge
	// unserved is set by AdmitExpiry: the order's payment request has not been
	// processed.
	unserved bool
}

// Topic implements event.Payload.
func (ExpiryDue) Topic() string { return TopicExpiryDue }

// Key implements event.Payload.
func (p ExpiryDue) Key() string { return p.OrderID }

// Validate implements event.Payload.
func (p ExpiryDue) Validate() error { return event.CheckID("order_id", p.OrderID) }

// OrderExpired reports that an order ended because it was not paid in time.
type OrderExpired struct {
	OrderID string `doc:"The order." format:"id" json:"order_id"`
}

// Topic implements event.Payload.
func (OrderExpired) Topic() string { return TopicOrderExpired }

// Key implements event.Payload.
func (p OrderExpired) Key() string { return p.OrderID }

// Validate implements event.Payload.
func (p OrderExpired) Validate() error { return event.CheckID("order_id", p.OrderID) }

// RefundRequested requests a full refund of a capture.
type RefundRequested struct {
	OrderID       string        `doc:"The order."                   format:"id"       json:"order_id"`
	TransactionID string        `doc:"The capture at the provider." format:"id"       json:"transaction_id"`
	Amount        *money.Amount `doc:"The amount."                  json:"amount"`
	Currency      string        `doc:"The currency of the amount."  format:"currency" json:"currency"`
	// Reason is the order's status, which explains the refund.
	Reason order.Status `doc:"The status of the order, which explains the refund." json:"reason" required:"false"`
	// FailedRefundID is set after a refund of the capture has failed. No other refund
	// is made until a person has decided.
	FailedRefundID string `doc:"A refund of the capture that has failed. No other one is made until a person has decided." format:"id" json:"failed_refund_id,omitempty"`
}

// Topic implements event.Payload.
func (RefundRequested) Topic() string { return TopicRefundRequested }

// Key implements event.Payload.
func (p RefundRequested) Key() string { return p.OrderID }

// Validate implements event.Payload.
func (p RefundRequested) Validate() error {
	return errors.Join(event.CheckID("order_id", p.OrderID), money.CheckMoved("amount", p.Amount, p.Currency),
		event.CheckID("transaction_id", p.TransactionID), event.CheckOptionalID("failed_refund_id", p.FailedRefundID))
}

// PaymentRefunded reports that a capture has been refunded.
type PaymentRefunded struct {
	OrderID       string        `doc:"The order."                   format:"id"       json:"order_id"`
	TransactionID string        `doc:"The capture at the provider." format:"id"       json:"transaction_id"`
	RefundID      string        `doc:"The refund at the provider."  format:"id"       json:"refund_id"`
	Amount        *money.Amount `doc:"The amount."                  json:"amount"`
	Currency      string        `doc:"The currency of the amount."  format:"currency" json:"currency"`
}

// Topic implements event.Payload.
func (PaymentRefunded) Topic() string { return TopicPaymentRefunded }

// Key implements event.Payload.
func (p PaymentRefunded) Key() string { return p.OrderID }

// Validate implements event.Payload.
func (p PaymentRefunded) Validate() error {
	return errors.Join(event.CheckID("order_id", p.OrderID), event.CheckID("transaction_id", p.TransactionID),
		event.CheckID("refund_id", p.RefundID), money.CheckMoved("amount", p.Amount, p.Currency))
}

// RefundFailed reports that a refund failed after payments.refunded had reported it.
type RefundFailed struct {
	OrderID       string        `doc:"The order."                   format:"id"           json:"order_id"`
	TransactionID string        `doc:"The capture at the provider." json:"transaction_id"`
	RefundID      string        `doc:"The refund at the provider."  json:"refund_id"`
	Reason        string        `doc:"Why the refund failed."       json:"reason"`
	Amount        *money.Amount `doc:"The amount."                  json:"amount"`
	Currency      string        `doc:"The currency of the amount."  format:"currency"     json:"currency"`
}

// Topic implements event.Payload.
func (RefundFailed) Topic() string { return TopicRefundFailed }

// Key implements event.Payload.
func (p RefundFailed) Key() string { return p.OrderID }

// Validate implements event.Payload.
func (p RefundFailed) Validate() error {
	return errors.Join(event.CheckID("order_id", p.OrderID), money.CheckMoved("amount", p.Amount, p.Currency))
}
