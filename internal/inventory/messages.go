package inventory

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// TopicRestocked carries what came into the warehouse.
const TopicRestocked = "inventory.restocked"

// Limits of a delivery.
const (
	maxID       = 200 // bytes
	maxQuantity = 1_000_000_000
)

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
	var errs []error

	switch {
	case p.ProductID == "":
		errs = append(errs, fmt.Errorf("product_id: is missing, expected a text of 1 to %d bytes", maxID))
	case len(p.ProductID) > maxID:
		errs = append(errs, fmt.Errorf("product_id: has %d bytes, expected at most %d", len(p.ProductID), maxID))
	case strings.ContainsFunc(p.ProductID, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }):
		errs = append(errs, fmt.Errorf("product_id: is %+q, expected printable characters", p.ProductID))
	}

	switch {
	case p.Quantity == nil:
		errs = append(errs, errors.New("quantity: is missing, expected a whole number"))
	case *p.Quantity < 1 || *p.Quantity > maxQuantity:
		errs = append(errs, fmt.Errorf("quantity: is %d, expected 1 to %d", *p.Quantity, maxQuantity))
	}

	return errors.Join(errs...)
}
