package app

import (
	"context"

	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
	"github.com/millracehq/millrace/internal/shop/user"
)

// Name prefixes of the consumers that handle messages about orders and about users. These
// messages have the order's or the user's id as their key.
const (
	aboutOrders = "fulfilment."
	aboutUsers  = "account."
)

// ShowOrder returns an order with its history. The error for an order that does not
// exist says where its messages are.
func (s *Service) ShowOrder(ctx context.Context, id string) (order.Details, error) {
	details, err := s.Orders.Show(ctx, id)

	return details, s.Operator.Elsewhere(ctx, err, id, aboutOrders)
}

// ShowPayment returns the payment of an order alongside the gateway's record. The
// error for a payment that does not exist says where the messages of the order are.
func (s *Service) ShowPayment(ctx context.Context, id string) (payment.Statement, error) {
	statement, err := payment.State(ctx, s.Pool, s.Gateway, id)

	return statement, s.Operator.Elsewhere(ctx, err, id, aboutOrders)
}

// ShowUser returns a user with their history. The error for a user who does not exist
// says where their messages are.
func (s *Service) ShowUser(ctx context.Context, id string) (user.Details, error) {
	details, err := s.Users.Show(ctx, id)

	return details, s.Operator.Elsewhere(ctx, err, id, aboutUsers)
}
