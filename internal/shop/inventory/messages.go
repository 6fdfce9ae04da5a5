package inventory

import (
	"errors"
	"fmt"

	"github.com/millracehq/millrace/internal/engine/event"
)

// TopicRestocked carries what came into the warehouse.
const TopicRestocked = "inventory.restocked"

// maxQuantity bounds a delivery.
const maxQuantity = 1_000_000_000

// Restocked says that a quantity of a product came in.
type Restocked struct {
	ProductID string `json:"product_id"`
	// Quantity is a pointer to tell what is missing from what is zero.
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
