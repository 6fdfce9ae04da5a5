package inventory

import (
	"errors"
	"fmt"

	"github.com/millracehq/millrace/internal/engine/event"
)

// TopicRestocked carries deliveries to the warehouse.
const TopicRestocked = "inventory.restocked"

// maxQuantity is the largest delivery.
const maxQuantity = 1_000_000_000

// Restocked is the delivery of a quantity of a product.
type Restocked struct {
	ProductID string `json:"product_id"`
	// Quantity is a pointer to distinguish a missing quantity from 0.
	Quantity *int64 `json:"quantity"`
}

// Topic implements event.Payload.
func (Restocked) Topic() string { return TopicRestocked }

// Key implements event.Payload.
func (p Restocked) Key() string { return p.ProductID }

// Validate implements event.Payload.
func (p Restocked) Validate() error {
	errs := []error{event.CheckID("product_id", p.ProductID)}

	switch {
	case p.Quantity == nil:
		errs = append(errs, errors.New("quantity: is missing, expected a whole number"))
	case *p.Quantity < 1 || *p.Quantity > maxQuantity:
		errs = append(errs, fmt.Errorf("quantity: is %d, expected 1 to %d", *p.Quantity, maxQuantity))
	}

	return errors.Join(errs...)
}
