package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/order"
)

// amount is money as a JSON number.
type amount struct{ money.Amount }

// Schema implements huma.SchemaProvider.
func (amount) Schema(huma.Registry) *huma.Schema { return &huma.Schema{Type: huma.TypeNumber} }

// orderView is an order with its history.
type orderView struct {
	ID          string       `json:"id"`
	Status      string       `json:"status"`
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
	MessageID  string          `json:"message_id" format:"uuid" doc:"The message that caused it."`
	RecordedAt time.Time       `json:"recorded_at"`
}

type orderOutput struct{ Body orderView }

type stockOutput struct {
	Page

	Body struct {
		Stock []inventory.Stock `json:"stock" nullable:"false"`
		Next  string            `json:"next,omitempty" doc:"The cursor of the next page."`
	}
}

type versionOutput struct {
	Body struct {
		Version string `json:"version"`
	}
}

// resources registers the operations that read what the service keeps.
func (api API) resources(h huma.API) {
	huma.Register(h, huma.Operation{
		OperationID: "get-order", Method: http.MethodGet, Path: "/orders/{id}", Tags: []string{"orders"},
		Summary: "Show an order with its history", Errors: errorsOf(http.StatusNotFound),
	}, api.getOrder)
	huma.Register(h, huma.Operation{
		OperationID: "list-stock", Method: http.MethodGet, Path: "/stock", Tags: []string{"stock"},
		Summary: "List the stock of products, by id", Errors: errorsOf(),
	}, api.listStock)
	huma.Register(h, huma.Operation{
		OperationID: "get-version", Method: http.MethodGet, Path: "/version",
		Summary: "The version of the program", Errors: errorsOf(),
	}, func(context.Context, *struct{}) (*versionOutput, error) {
		out := &versionOutput{}
		out.Body.Version = api.Failed.Release()

		return out, nil
	})
}

func (api API) getOrder(ctx context.Context, in *struct {
	ID string `path:"id" maxLength:"500" example:"order_123"`
},
) (*orderOutput, error) {
	// What is no text is no id either: Postgres would refuse it.
	if event.Text(in.ID) != in.ID {
		return nil, api.problem(ctx, order.NotFound(in.ID))
	}

	o, err := api.Orders.Show(ctx, in.ID)
	if err != nil {
		return nil, api.problem(ctx, err)
	}

	view := orderView{
		ID: o.ID, Status: string(o.Status), Version: o.Version, TotalAmount: amount{o.Total}, Currency: o.Currency,
		Lines: append([]order.Line{}, o.Lines...), CreatedAt: o.CreatedAt, UpdatedAt: o.UpdatedAt, History: []orderEvent{},
	}

	for _, e := range o.History {
		view.History = append(view.History, orderEvent{
			Version: e.Version, Type: e.Type, Data: e.Data, MessageID: e.MessageID.String(), RecordedAt: e.RecordedAt,
		})
	}

	return &orderOutput{Body: view}, nil
}

func (api API) listStock(ctx context.Context, in *Paging) (*stockOutput, error) {
	var after string
	if err := in.cursor("%q", &after); err != nil {
		return nil, err
	}

	list, err := api.Inventory.Page(ctx, event.Text(after), in.Limit+1)
	if err != nil {
		return nil, api.problem(ctx, err)
	}

	out := &stockOutput{}

	if len(list) > in.Limit {
		list = list[:in.Limit]
		out.Body.Next, out.Link = next("/stock", url.Values{}, in.Limit, "%q", list[in.Limit-1].ProductID)
	}

	out.Body.Stock = append([]inventory.Stock{}, list...)

	return out, nil
}
