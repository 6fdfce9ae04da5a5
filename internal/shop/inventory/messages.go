package inventory

import (
	"errors"
	"fmt"

	"github.com/millracehq/millrace/internal/engine/event"
)

// TopicRestocked carries deliveries to the warehouse.
const TopicRestocked = "inventory.restocked"

// maxQuantity is the largest quantity of a delivery or an order.
const maxQuantity = 1_000_000_000

// Restocked is the delivery of a quantity of a product.
type Restocked struct {
	ProductID string `doc:"The product." format:"id" json:"product_id"`
	// Quantity is a pointer to distinguish a missing quantity from 0.
	Quantity *int64 `doc:"The quantity delivered." json:"quantity" maximum:"1000000000" minimum:"1"`
}

// Topic implements event.Payload.
func (Restocked) Topic() string { return TopicRestocked }

// Key implements event.Payload.
func (p Restocked) Key() string { return p.ProductID }

// Validate implements event.Payload.
func (p Restocked) Validate() error {
	return CheckItem("", p.ProductID, p.Quantity)
}

// CheckItem validates a quantity of a product in the fields at prefix.
func CheckItem(prefix, productID string, quantity *int64) error {
	err := event.CheckID(prefix+"product_id", productID)

	switch {
	case quantity == nil:
		err = errors.Join(err, fmt.Errorf("%squantity: is missing, expected a whole number", prefix))
	case *quantity < 1 || *quantity > maxQuantity:
		err = errors.Join(err, fmt.Errorf("%squantity: is %d, expected 1 to %d", prefix, *quantity, maxQuantity))
	}

	return err
}
