package app

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/millracehq/millrace/internal/console"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
	"github.com/millracehq/millrace/internal/shop/user"
)

// Paths of the shop's kinds in the console.
const (
	ordersPath   = "orders"
	usersPath    = "users"
	productsPath = "products"
)

// listed is the number of things in a list of the console.
const listed = 50

// kinds returns what the shop shows in the console.
func (s *Service) kinds() []console.Kind {
	return []console.Kind{
		{Path: ordersPath, Title: "Orders", One: "order", Recent: s.recentOrders, Show: s.orderThing},
		{Path: usersPath, Title: "Users", One: "user", Recent: s.recentUsers, Show: s.userThing},
		{Path: productsPath, Title: "Products", One: "product", Recent: s.someProducts, Show: s.productThing},
	}
}

func (s *Service) recentOrders(ctx context.Context) ([]console.Summary, string, error) {
	list, err := s.Orders.Newest(ctx, listed)

	return postgres.Column(list, func(o order.Summary) console.Summary {
		return console.Summary{ID: o.ID, State: string(o.Status), More: o.Total + " " + o.Currency, At: o.UpdatedAt}
	}), "The newest orders", err
}

func (s *Service) recentUsers(ctx context.Context) ([]console.Summary, string, error) {
	list, err := s.Users.List(ctx, listed)

	return postgres.Column(list, func(u user.Summary) console.Summary {
		return console.Summary{ID: u.ID, State: userState(u.Erased), At: u.UpdatedAt}
	}), "The users that changed last", err
}

func (s *Service) someProducts(ctx context.Context) ([]console.Summary, string, error) {
	list, err := s.Inventory.Page(ctx, "", listed)

	return postgres.Column(list, func(stock inventory.Stock) console.Summary {
		return console.Summary{ID: stock.ProductID, More: fmt.Sprintf("%d available, %d reserved, %d sold", stock.Available, stock.Reserved, stock.Sold)}
	}), fmt.Sprintf("The first %d products, by id", listed), err
}

// atVersion returns the version to show of n, for one that was asked for; 0 asks for the
// newest one.
func atVersion(asked, n int) (int, error) {
	if asked > n {
		return 0, event.Errorf(event.Invalid, "version: there is no version %d, expected at most %d", asked, n)
	}

	return cmp.Or(asked, n), nil
}

func (s *Service) orderThing(ctx context.Context, id string, version int, masked bool) (console.Thing, error) {
	details, err := s.ShowOrder(ctx, id)
	if err != nil {
		return console.Thing{}, err
	}

	thing := console.Thing{Steps: orderSteps()}
	if thing.Version, err = atVersion(version, len(details.History)); err != nil {
		return thing, err
	}

	shown := order.Order{ID: id}

	for i, e := range details.History {
		o, err := order.Fold(id, details.History[:i+1])
		if err != nil {
			return thing, err
		}

		if masked && e.Type == (order.Cancelled{}).EventType() {
			e.Data = json.RawMessage(`{}`) // the reason is free text
		}

		thing.History = append(thing.History, console.Version{Type: e.Type, State: string(o.Status), Data: e.Data, MessageID: e.MessageID, RecordedAt: e.RecordedAt})

		if e.Version == thing.Version {
			shown = o
		}
	}

	thing.State, thing.Good = string(shown.Status), shown.Status == order.StatusCompleted
	thing.Bad = shown.Status.Terminal() && !thing.Good
	thing.Final = details.Status.Terminal() && time.Since(details.UpdatedAt) > settled
	thing.Facts = orderFacts(shown)
	thing.Tables = append(thing.Tables, s.paymentTable(ctx, id), s.stockTable(ctx, details.Lines))

	return thing, nil
}

// settled is how long after its last change a finished order is no longer watched.
const settled = time.Minute

func orderSteps() []console.Step {
	return postgres.Column(fulfilment.Transitions(), func(t fulfilment.Transition) console.Step {
		return console.Step{From: string(t.From), To: string(t.To)}
	})
}

func orderFacts(o order.Order) []console.Fact {
	facts := []console.Fact{{Name: "Total", Value: o.Total.String() + " " + o.Currency}}

	for _, line := range o.Lines {
		facts = append(facts, console.Fact{Name: "Line", Value: fmt.Sprintf("%d x %s", line.Quantity, line.ProductID)})
	}

	for _, c := range o.Captures {
		text := c.TransactionID

		switch {
		case c.RefundID != "":
			text += ", refunded as " + c.RefundID
		case o.Owes(c):
			text += ", to be refunded"
		}

		facts = append(facts, console.Fact{Name: "Captured", Value: text})
	}

	return facts
}

// paymentTable compares both sides of a payment. A gateway that does not answer must not
// hide the order, so it is a warning.
func (s *Service) paymentTable(ctx context.Context, id string) console.Table {
	table := console.Table{Title: "Payment, on both sides", Head: []string{"Side", "Status", "Amount", "Refunded", "Transaction", "At"}}

	statement, err := payment.State(ctx, s.Pool, s.Gateway, id)

	switch {
	case event.KindOf(err) == event.NotFound:
		table.Good = "nothing was charged"

		return table
	case err != nil:
		table.Warnings = []string{"the payment could not be read: " + event.Text(scrub.Text(err.Error()))}

		return table
	}

	for _, r := range statement.Recorded {
		status, refunded := r.Status, "0"

		switch {
		case r.RefundID != "":
			refunded = r.Amount.String()
		case r.RefundFailure != "":
			status += ", refund failed: " + r.RefundFailure
		case r.DeclineReason != "":
			status += ": " + r.DeclineReason
		}

		table.Rows = append(table.Rows, cells("Millrace", status, r.Amount.String()+" "+r.Currency, refunded, r.TransactionID, at(r.RecordedAt)))
	}

	for _, e := range statement.Ledger {
		table.Rows = append(table.Rows, cells("Gateway", "captured", e.Amount.String()+" "+e.Currency, e.Refunded.String(), e.TransactionID, at(e.At)))
	}

	if table.Warnings = statement.Differences; len(table.Warnings) == 0 {
		table.Good = "both agree"
	}

	return table
}

// stockTable shows the stock of the products of an order.
func (s *Service) stockTable(ctx context.Context, lines []order.Line) console.Table {
	table := console.Table{Title: "Stock of its products", Head: []string{"Product", "Ordered", "Available", "Reserved", "Sold"}}

	list, err := s.Inventory.List(ctx, postgres.Column(lines, func(l order.Line) string { return l.ProductID })...)
	if err != nil && event.KindOf(err) != event.NotFound {
		table.Warnings = []string{"the stock could not be read: " + event.Text(scrub.Text(err.Error()))}

		return table
	}

	for _, line := range lines {
		row := cells(line.ProductID, fmt.Sprint(line.Quantity), "none", "", "")
		if i := slices.IndexFunc(list, func(stock inventory.Stock) bool { return stock.ProductID == line.ProductID }); i >= 0 {
			row = cells(line.ProductID, fmt.Sprint(line.Quantity), fmt.Sprint(list[i].Available), fmt.Sprint(list[i].Reserved), fmt.Sprint(list[i].Sold))
			row[0].Kind = productsPath
		}

		table.Rows = append(table.Rows, row)
	}

	return table
}

func cells(texts ...string) []console.Cell {
	return postgres.Column(texts, func(text string) console.Cell { return console.Cell{Text: text} })
}

func at(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000Z") }

func userState(erased bool) string {
	if erased {
		return "erased"
	}

	return "active"
}

func (s *Service) userThing(ctx context.Context, id string, version int, masked bool) (console.Thing, error) {
	details, err := s.ShowUser(ctx, id)
	if err != nil {
		return console.Thing{}, err
	}

	thing := console.Thing{Steps: []console.Step{{To: userState(false)}, {From: userState(false), To: userState(true)}}}
	if thing.Version, err = atVersion(version, len(details.History)); err != nil {
		return thing, err
	}

	u, shown := user.User{ID: id}, user.User{}

	for _, e := range details.History {
		u = u.Apply(e.Data)

		data, err := json.Marshal(e.Data)
		if err != nil {
			return thing, fmt.Errorf("encoding version %d of user %s: %w", e.Version, id, err)
		}

		if masked {
			data = []byte(operate.Hidden)
		}

		thing.History = append(thing.History, console.Version{Type: e.Type, State: userState(u.Erased), Data: data, MessageID: e.MessageID, RecordedAt: e.RecordedAt})

		if e.Version == thing.Version {
			shown = u
		}
	}

	thing.State, thing.Good, thing.Facts = userState(shown.Erased), !shown.Erased, userFacts(shown, masked)

	return thing, nil
}

func userFacts(u user.User, masked bool) []console.Fact {
	if u.Erased {
		return []console.Fact{{Name: "Personal data", Value: "erased"}}
	}

	facts := []console.Fact{{Name: "Name", Value: u.Name}, {Name: "E-mail", Value: u.Email}}
	for _, name := range u.Properties.Names() {
		facts = append(facts, console.Fact{Name: name, Value: string(u.Properties[name])})
	}

	if masked {
		for i := range facts {
			facts[i].Value = operate.Hidden
		}
	}

	return facts
}

func (s *Service) productThing(ctx context.Context, id string, version int, _ bool) (console.Thing, error) {
	if version > 0 {
		return console.Thing{}, event.Errorf(event.Invalid, "version: a product has no versions")
	}

	list, err := s.Inventory.List(ctx, id)
	if err != nil {
		return console.Thing{}, err
	}

	stock := list[0]
	thing := console.Thing{State: "available", Good: true, Facts: []console.Fact{
		{Name: "Available", Value: fmt.Sprint(stock.Available)},
		{Name: "Reserved", Value: fmt.Sprint(stock.Reserved) + ", for orders that wait for their payment or are being completed"},
		{Name: "Sold", Value: fmt.Sprint(stock.Sold)},
		{Name: "Supplied", Value: fmt.Sprint(stock.Available + stock.Reserved + stock.Sold)},
	}}

	if stock.Available == 0 {
		thing.State, thing.Good, thing.Bad = "sold out", false, true
	}

	return thing, nil
}
