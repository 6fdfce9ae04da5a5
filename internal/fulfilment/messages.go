package fulfilment

import (
	"errors"
	"fmt"
	"unicode"
	"unicode/utf8"

	"github.com/millrace/millrace/internal/money"
	"github.com/millrace/millrace/internal/order"
)

// Topics of the order process.
const (
	TopicOrderCreated     = "orders.created"
	TopicPaymentRequested = "payments.requested"
	TopicOrderCompleted   = "orders.completed"
	TopicOrderRejected    = "orders.rejected"
)

// Limits of an order.
const (
	maxID       = 200 // bytes
	maxItems    = 1000
	maxQuantity = 1_000_000_000
)

// OrderCreated asks for an order. It has one product, or several items.
type OrderCreated struct {
	Order NewOrder `json:"order"`
}

// NewOrder is the body of OrderCreated. Pointers tell what is missing from
// what is zero.
type NewOrder struct {
	ID          string        `json:"id"`
	ProductID   string        `json:"product_id,omitempty"`
	Quantity    *int64        `json:"quantity,omitempty"`
	Items       []Item        `json:"items,omitempty"`
	TotalAmount *money.Amount `json:"total_amount,omitempty"`
	// Currency is an ISO 4217 code; money.DefaultCurrency if empty.
	Currency string `json:"currency,omitempty"`
}

// Item is a quantity of one product.
type Item struct {
	ProductID string `json:"product_id"`
	Quantity  *int64 `json:"quantity"`
}

// Topic implements event.Payload.
func (OrderCreated) Topic() string { return TopicOrderCreated }

// Key implements event.Payload.
func (p OrderCreated) Key() string { return p.Order.ID }

// Validate implements event.Payload.
func (p OrderCreated) Validate() error {
	o := p.Order
	errs := []error{checkID("order.id", o.ID)}

	switch {
	case len(o.Items) > maxItems:
		errs = append(errs, fmt.Errorf("order.items: has %d elements, expected at most %d", len(o.Items), maxItems))
	case len(o.Items) > 0 && (o.ProductID != "" || o.Quantity != nil):
		errs = append(errs, errors.New("order.items: stands beside order.product_id, expected one of them"))
	case len(o.Items) > 0:
		for i, item := range o.Items {
			errs = append(errs, item.check(fmt.Sprintf("order.items[%d]", i)))
		}
	default:
		errs = append(errs, Item{ProductID: o.ProductID, Quantity: o.Quantity}.check("order"))
	}

	errs = append(errs, money.Check("order.total_amount", o.TotalAmount, o.currency()))

	return errors.Join(errs...)
}

func (i Item) check(path string) error {
	err := checkID(path+".product_id", i.ProductID)

	switch {
	case i.Quantity == nil:
		err = errors.Join(err, fmt.Errorf("%s.quantity: is missing, expected a whole number", path))
	case *i.Quantity < 1 || *i.Quantity > maxQuantity:
		err = errors.Join(err, fmt.Errorf("%s.quantity: is %d, expected 1 to %d", path, *i.Quantity, maxQuantity))
	}

	return err
}

func (o NewOrder) currency() string {
	if o.Currency == "" {
		return money.DefaultCurrency
	}

	return o.Currency
}

// lines returns what is ordered, one line a product, in order of appearance.
func (o NewOrder) lines() []order.Line {
	if len(o.Items) == 0 {
		return []order.Line{{ProductID: o.ProductID, Quantity: *o.Quantity}}
	}

	var lines []order.Line

	place := make(map[string]int, len(o.Items))

	for _, item := range o.Items {
		at, known := place[item.ProductID]
		if !known {
			at = len(lines)
			place[item.ProductID] = at
			lines = append(lines, order.Line{ProductID: item.ProductID})
		}

		lines[at].Quantity += *item.Quantity
	}

	return lines
}

// PaymentRequested asks to charge an order.
type PaymentRequested struct {
	OrderID  string        `json:"order_id"`
	Amount   *money.Amount `json:"amount"`
	Currency string        `json:"currency,omitempty"`
}

// Topic implements event.Payload.
func (PaymentRequested) Topic() string { return TopicPaymentRequested }

// Key implements event.Payload.
func (p PaymentRequested) Key() string { return p.OrderID }

// Validate implements event.Payload.
func (p PaymentRequested) Validate() error {
	return errors.Join(checkID("order_id", p.OrderID), money.Check("amount", p.Amount, p.currency()))
}

func (p PaymentRequested) currency() string {
	if p.Currency == "" {
		return money.DefaultCurrency
	}

	return p.Currency
}

// OrderCompleted says that an order is paid and can be completed.
type OrderCompleted struct {
	OrderID string `json:"order_id"`
}

// Topic implements event.Payload.
func (OrderCompleted) Topic() string { return TopicOrderCompleted }

// Key implements event.Payload.
func (p OrderCompleted) Key() string { return p.OrderID }

// Validate implements event.Payload.
func (p OrderCompleted) Validate() error { return checkID("order_id", p.OrderID) }

// OrderRejected says that an order ended without a sale.
type OrderRejected struct {
	OrderID string `json:"order_id"`
	// Reason is the order's final status.
	Reason order.Status `json:"reason"`
	// Detail is for people.
	Detail string `json:"detail"`
}

// Topic implements event.Payload.
func (OrderRejected) Topic() string { return TopicOrderRejected }

// Key implements event.Payload.
func (p OrderRejected) Key() string { return p.OrderID }

// Validate implements event.Payload.
func (p OrderRejected) Validate() error { return checkID("order_id", p.OrderID) }

func checkID(field, id string) error {
	switch {
	case id == "":
		return fmt.Errorf("%s: is missing, expected a text of 1 to %d bytes", field, maxID)
	case len(id) > maxID:
		return fmt.Errorf("%s: has %d bytes, expected at most %d", field, len(id), maxID)
	case !printable(id):
		return fmt.Errorf("%s: is %+q, expected printable characters", field, id)
	}

	return nil
}

func printable(s string) bool {
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return false
		}
	}

	return true
}
