package app

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/httpapi"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/notification"
	"github.com/millracehq/millrace/internal/shop/order"
)

// amount is money as a JSON number.
type amount struct{ money.Amount }

// Schema implements huma.SchemaProvider.
func (amount) Schema(huma.Registry) *huma.Schema { return &huma.Schema{Type: huma.TypeNumber} }

// orderView is an order with its history.
type orderView struct {
	ID          string       `json:"id"`
	Status      order.Status `json:"status"`
	Version     int          `json:"version"`
	TotalAmount amount       `json:"total_amount"`
	Currency    string       `json:"currency"`
	Lines       []order.Line `json:"lines" nullable:"false"`
	CreatedAt   time.Time    `json:"created_at"`
	UpdatedAt   time.Time    `json:"updated_at"`
	History     []orderEvent `json:"history" nullable:"false"`
}

type orderEvent struct {
	Version    int             `json:"version"`
	Type       string          `json:"type"`
	Data       json.RawMessage `json:"data"`
	MessageID  string          `json:"message_id" format:"uuid" doc:"The message that caused the event."`
	RecordedAt time.Time       `json:"recorded_at"`
}

type orderOutput struct{ Body orderView }

// resources registers the operations of the shop.
func (s *Service) resources(api *httpapi.API) {
	httpapi.Get(api, access.Viewer, "/orders/{id}", "Show an order and its history", s.getOrder)
	httpapi.Get(api, access.Viewer, "/stock", "List the stock of products, by id", s.listStock)
	httpapi.Get(api, access.Viewer, "/notifications", "List the newest notifications with the provider's responses",
		func(ctx context.Context, in *struct {
			User  string `query:"user" maxLength:"500" doc:"Only notifications to this user."`
			Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
		},
		) (*httpapi.List[notification.Entry], error) {
			list, err := s.Notifications.List(ctx, in.User, in.Limit+1)

			for i := range list {
				if httpapi.Masked(ctx) {
					list[i].Answer = "" // it may repeat the address or the text
				}
			}

			return httpapi.First(list, err, in.Limit, func() (int, error) { return s.Notifications.Count(ctx, in.User) })
		})
}

func (s *Service) getOrder(ctx context.Context, in *struct {
	ID string `path:"id" maxLength:"500" example:"order_123"`
},
) (*orderOutput, error) {
	o, err := s.ShowOrder(ctx, in.ID)
	if err != nil {
		return nil, err
	}

	return &orderOutput{Body: orderView{
		ID: o.ID, Status: o.Status, Version: o.Version, TotalAmount: amount{o.Total}, Currency: o.Currency,
		Lines: append([]order.Line{}, o.Lines...), CreatedAt: o.CreatedAt, UpdatedAt: o.UpdatedAt,
		History: postgres.Column(o.History, func(e eventstore.Event) orderEvent {
			if httpapi.Masked(ctx) && e.Type == (order.Cancelled{}).EventType() {
				e.Data = json.RawMessage(`{}`) // the reason is free text
			}

			return orderEvent{Version: e.Version, Type: e.Type, Data: e.Data, MessageID: e.MessageID.String(), RecordedAt: e.RecordedAt}
		}),
	}}, nil
}

func (s *Service) listStock(ctx context.Context, in *httpapi.Paging) (*httpapi.List[inventory.Stock], error) {
	var after string
	if err := in.After("%q", &after); err != nil {
		return nil, err
	}

	list, err := s.Inventory.Page(ctx, after, in.Limit+1)

	return httpapi.Page(in, list, func(stock inventory.Stock) string { return fmt.Sprintf("%q", stock.ProductID) }), err
}
