package fulfilment_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// Each part runs 100 stories, rapid's default.
const (
	partsInMemory   = 100
	partsOnPostgres = 4
)

func TestTheProcessKeepsItsInvariantsInAnyStory(t *testing.T) {
	t.Parallel()

	for part := range partsInMemory {
		t.Run(strconv.Itoa(part), func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				runStory(t, "", func(stock map[string]int64, g *gateway) backend { return newMemoryBackend(stock, g) })
			})
		})
	}
}

func TestTheHandlersKeepTheInvariantsInAnyStory(t *testing.T) {
	t.Parallel()

	for part := range partsOnPostgres {
		t.Run(strconv.Itoa(part), func(t *testing.T) {
			t.Parallel()

			s := newShop(t)
			stories := 0

			rapid.Check(t, func(rt *rapid.T) {
				stories++
				prefix := fmt.Sprintf("s%d-", stories)

				runStory(rt, prefix, func(stock map[string]int64, g *gateway) backend {
					if err := s.stock.Seed(context.Background(), stock); err != nil {
						rt.Fatal(err)
					}

					return &postgresBackend{shop: s, prefix: prefix, process: fulfilment.NewProcess(fulfilment.DefaultConfig(), s.orders, s.stock, g, s.undelivered)}
				})
			})
		})
	}
}

// memoryBackend runs Decide on maps.
type memoryBackend struct {
	gateway *gateway
	known   map[string]order.Order
	history map[string][]eventstore.Data
	stock   map[string]*inventory.Stock
	rows    map[string]paid
	inbox   map[uuid.UUID]bool
}

func newMemoryBackend(stock map[string]int64, g *gateway) *memoryBackend {
	d := &memoryBackend{
		gateway: g, known: map[string]order.Order{}, history: map[string][]eventstore.Data{},
		stock: map[string]*inventory.Stock{}, rows: map[string]paid{}, inbox: map[uuid.UUID]bool{},
	}
	for product, n := range stock {
		d.stock[product] = &inventory.Stock{ProductID: product, Supplied: n, Available: n}
	}

	return d
}

func (d *memoryBackend) deliver(m event.Outgoing) *steps {
	switch p := m.Payload.(type) {
	case inventory.Restocked:
		return &steps{record: d.once(m, func() ([]event.Outgoing, error) { return nil, d.restock(p) })}
	case fulfilment.OrderCreated:
		return d.plain(m, func() fulfilment.Command { return d.place(p.Order) })
	case fulfilment.OrderCompleted:
		return d.plain(m, func() fulfilment.Command { return fulfilment.Complete{} })
	case payment.Reported:
		return d.plain(m, func() fulfilment.Command { return reported(p) })
	case fulfilment.PaymentRequested:
		return d.charge(m, p)
	case fulfilment.RefundRequested:
		return d.refund(m, p)
	case fulfilment.CancelRequested:
		return d.ask(m, func(found payment.Outcome) fulfilment.Command {
			return fulfilment.Cancel{Reason: p.Reason, Found: found}
		})
	case fulfilment.ExpiryDue:
		return d.ask(m, func(found payment.Outcome) fulfilment.Command { return fulfilment.Expire{Found: found} })
	default:
		return nil
	}
}

// once stands in for a transaction with the inbox: it applies a message once.
func (d *memoryBackend) once(m event.Outgoing, apply func() ([]event.Outgoing, error)) func(commit bool) ([]event.Outgoing, error) {
	return func(commit bool) ([]event.Outgoing, error) {
		if !commit {
			return nil, errLost
		}

		if d.inbox[m.ID] {
			return nil, nil
		}

		outgoing, err := apply()
		d.inbox[m.ID] = err == nil

		return outgoing, err
	}
}

func (d *memoryBackend) plain(m event.Outgoing, command func() fulfilment.Command) *steps {
	return &steps{record: d.once(m, func() ([]event.Outgoing, error) { return d.apply(m, command()) })}
}

func (d *memoryBackend) charge(m event.Outgoing, p fulfilment.PaymentRequested) *steps {
	var (
		late    bool
		outcome payment.Outcome
		asked   = payment.Charge{OrderID: p.OrderID, Attempt: p.Attempt, Amount: *p.Amount, Currency: "USD"}
	)

	return &steps{
		admit: func() (bool, error) {
			late = d.known[p.OrderID].Status != order.StatusInventoryReserved

			return d.known[p.OrderID].Status != order.StatusInventoryUnavailable, nil
		},
		perform: func() (err error) {
			if late {
				outcome, err = d.gateway.Find(context.Background(), asked)
			} else {
				outcome, err = d.gateway.Charge(context.Background(), asked)
			}

			return err
		},
		record: d.once(m, func() ([]event.Outgoing, error) {
			return d.apply(m, fulfilment.Settle{Outcome: outcome, Attempt: p.Attempt})
		}),
	}
}

func (d *memoryBackend) ask(m event.Outgoing, command func(payment.Outcome) fulfilment.Command) *steps {
	var found payment.Outcome

	id := m.Payload.Key()

	return &steps{
		admit: func() (bool, error) {
			if _, exists := d.known[id]; !exists {
				return false, order.NotFound(id)
			}

			return d.known[id].Status == order.StatusInventoryReserved, nil
		},
		perform: func() (err error) {
			found, err = d.gateway.Find(context.Background(), payment.Charge{OrderID: id})

			return err
		},
		record: d.once(m, func() ([]event.Outgoing, error) { return d.apply(m, command(found)) }),
	}
}

func (d *memoryBackend) refund(m event.Outgoing, p fulfilment.RefundRequested) *steps {
	var id string

	return &steps{
		admit: func() (bool, error) {
			capture, _ := d.known[p.OrderID].Capture(p.TransactionID)

			return capture.RefundID == "", nil
		},
		perform: func() (err error) {
			id, err = d.gateway.Refund(context.Background(), payment.Refund{
				OrderID: p.OrderID, TransactionID: p.TransactionID, Amount: *p.Amount, Currency: p.Currency,
			})

			return err
		},
		record: d.once(m, func() ([]event.Outgoing, error) {
			if id == "" {
				return nil, nil
			}

			return d.apply(m, fulfilment.Refunded{TransactionID: p.TransactionID, RefundID: id})
		}),
	}
}

func reported(p payment.Reported) fulfilment.Command {
	amount := &fulfilment.Money{Amount: *p.Amount, Currency: p.Currency}

	switch p.Outcome {
	case payment.ReportRefunded:
		return fulfilment.Refunded{TransactionID: p.TransactionID, RefundID: p.RefundID, Money: amount}
	case payment.ReportDeclined:
		return fulfilment.Settle{Outcome: payment.Outcome{Declined: p.Reason}, Attempt: p.Attempt}
	default:
		return fulfilment.Settle{Outcome: payment.Outcome{TransactionID: p.TransactionID}, Attempt: p.Attempt, Money: amount}
	}
}

func (d *memoryBackend) place(asked fulfilment.NewOrder) fulfilment.Command {
	o := order.Order{ID: asked.ID, Total: *asked.TotalAmount, Currency: asked.Currency.Code()}
	demand, available := inventory.Demand{}, map[string]int64{}

	for _, item := range asked.Items {
		o.Lines = append(o.Lines, order.Line{ProductID: item.ProductID, Quantity: *item.Quantity})
		demand[item.ProductID] = *item.Quantity

		if stock := d.stock[item.ProductID]; stock != nil {
			available[item.ProductID] = stock.Available
		}
	}

	return fulfilment.Place{Asked: o, Short: inventory.Allocate(available, []inventory.Demand{demand})[0]}
}

func (d *memoryBackend) restock(p inventory.Restocked) error {
	if d.stock[p.ProductID] == nil {
		d.stock[p.ProductID] = &inventory.Stock{ProductID: p.ProductID}
	}

	d.stock[p.ProductID].Supplied += *p.Quantity
	d.stock[p.ProductID].Available += *p.Quantity

	return nil
}

// apply carries out a decision and checks the stock.
func (d *memoryBackend) apply(m event.Outgoing, c fulfilment.Command) ([]event.Outgoing, error) {
	id := m.Payload.Key()

	o, exists := d.known[id]
	if !exists {
		o.ID = id
	}

	decision, err := fulfilment.Decide(o, c)
	if err != nil {
		return nil, err
	}

	if len(decision.Events) > 0 {
		d.known[id] = decision.Order
		d.history[id] = append(d.history[id], decision.Events...)
	}

	if err := d.move(decision); err != nil {
		return nil, event.Reject(err)
	}

	for _, data := range decision.Events {
		d.note(id, data)
	}

	var outgoing []event.Outgoing
	for _, p := range decision.Publish {
		outgoing = append(outgoing, m.Then(p))
	}

	for _, r := range decision.Refunds {
		outgoing = append(outgoing, m.Then(r))
	}

	return outgoing, nil
}

func (d *memoryBackend) move(decision fulfilment.Decision) error {
	for _, line := range decision.Order.Lines {
		stock, n := d.stock[line.ProductID], line.Quantity

		switch decision.Stock {
		case fulfilment.ReserveStock:
			stock.Available, stock.Reserved = stock.Available-n, stock.Reserved+n
		case fulfilment.ReleaseStock:
			stock.Available, stock.Reserved = stock.Available+n, stock.Reserved-n
		case fulfilment.SellStock:
			stock.Reserved, stock.Sold = stock.Reserved-n, stock.Sold+n
		case fulfilment.KeepStock:
			continue
		}

		var held int64

		for _, o := range d.known {
			for _, l := range o.Lines {
				if l.ProductID == line.ProductID && o.Status.HoldsStock() {
					held += l.Quantity
				}
			}
		}

		if stock.Available < 0 || stock.Reserved != held || stock.Supplied != stock.Available+stock.Reserved+stock.Sold {
			return fmt.Errorf("stock is %+v, but orders hold %d", *stock, held)
		}
	}

	return nil
}

func (d *memoryBackend) note(id string, data eventstore.Data) {
	row := d.rows[id]

	switch data := data.(type) {
	case order.Paid:
		row = paid{status: "captured", transactionID: data.TransactionID}
	case order.PaymentFailed:
		row = paid{status: "declined"}
	case order.CapturedLate:
		if row.status == "" || row.status == "declined" {
			row = paid{status: "captured", transactionID: data.TransactionID}
		}
	case order.PaymentRefunded:
		if row.transactionID == data.TransactionID {
			row.status, row.refundID = "refunded", data.RefundID
		}
	}

	d.rows[id] = row
}

func (d *memoryBackend) orders(s *story) map[string]order.Order {
	for id, o := range d.known {
		folded := order.Order{ID: id}

		for _, data := range d.history[id] {
			var err error
			if folded, err = folded.Apply(data); err != nil {
				s.Fatalf("%s: %v", id, err)
			}
		}

		if fmt.Sprint(folded) != fmt.Sprint(o) {
			s.Fatalf("%s: folded %+v; the state is %+v", id, folded, o)
		}
	}

	return d.known
}

func (d *memoryBackend) levels(*story) map[string]inventory.Stock {
	levels := map[string]inventory.Stock{}
	for product, stock := range d.stock {
		levels[product] = *stock
	}

	return levels
}

func (d *memoryBackend) payments(*story) map[string]paid { return d.rows }

// postgresBackend runs the real handlers, with inbox and transactions.
type postgresBackend struct {
	*shop

	prefix  string
	process *fulfilment.Process
}

func (h *postgresBackend) deliver(m event.Outgoing) *steps {
	p := h.process

	switch m.Payload.(type) {
	case inventory.Restocked:
		return handled(h, m, h.stock.Restock)
	case fulfilment.OrderCreated:
		return handled(h, m, p.Place)
	case fulfilment.OrderCompleted:
		return handled(h, m, p.Complete)
	case payment.Reported:
		return handled(h, m, p.Report)
	case fulfilment.PaymentRequested:
		return effected(h, m, p.Admit, p.Charge, p.Settle)
	case fulfilment.RefundRequested:
		return effected(h, m, p.AdmitRefund, p.Refund, p.RecordRefund)
	case fulfilment.CancelRequested:
		return effected(h, m, p.AdmitCancel, p.FindForCancel, p.Cancel)
	case fulfilment.ExpiryDue:
		return effected(h, m, p.AdmitExpiry, p.FindForExpiry, p.Expire)
	default:
		return nil
	}
}

// received encodes and decodes a message, as if it came from a broker.
func received[P event.Payload](m event.Outgoing) (e event.Event[P], entry inbox.Entry, err error) {
	data, err := event.Encode(m.Payload)
	if err != nil {
		return e, entry, err
	}

	payload, err := event.Decode[P](data)

	return event.Event[P]{Meta: m.Meta, Payload: payload}, inbox.Entry{ID: m.ID, Fingerprint: event.Fingerprint(data)}, err
}

var errRolledBack = errors.New("rolled back")

// transact runs record in a transaction with the inbox, as the consumer does.
func transact[E any](h *postgresBackend, topic string, entry inbox.Entry, e E, commit bool,
	record func(context.Context, pgx.Tx, []E) ([]event.Outgoing, error),
) (outgoing []event.Outgoing, err error) {
	ctx := context.Background()

	first := &pgx.Batch{}
	claims := inbox.Claim(first, topic, []inbox.Entry{entry})

	err = postgres.InPipeline(ctx, h.pool, first, func(tx pgx.Tx) (*pgx.Batch, error) {
		verdicts, err := claims.Verdicts(ctx, tx)
		if err != nil || verdicts[0] == inbox.Duplicate {
			return nil, err
		}

		if outgoing, err = record(ctx, tx, []E{e}); err == nil && !commit {
			err = errRolledBack
		}

		return nil, err
	})
	if err != nil {
		outgoing = nil
	}

	return outgoing, err
}

func handled[P event.Payload](h *postgresBackend, m event.Outgoing,
	record func(context.Context, pgx.Tx, []event.Event[P]) ([]event.Outgoing, error),
) *steps {
	e, entry, err := received[P](m)

	return &steps{record: func(commit bool) ([]event.Outgoing, error) {
		if err != nil {
			return nil, err
		}

		return transact(h, m.Payload.Topic(), entry, e, commit, record)
	}}
}

func effected[P event.Payload, R any](h *postgresBackend, m event.Outgoing,
	admit func(context.Context, postgres.Querier, []event.Event[P]) ([]error, error),
	perform func(context.Context, event.Event[P]) (R, error),
	record func(context.Context, pgx.Tx, []event.Effected[P, R]) ([]event.Outgoing, error),
) *steps {
	e, entry, err := received[P](m)
	effected := event.Effected[P, R]{Event: e}

	return &steps{
		admit: func() (bool, error) {
			if err != nil {
				return false, err
			}

			events := []event.Event[P]{effected.Event}
			verdicts, err := admit(context.Background(), h.pool, events)
			effected.Event = events[0]

			if err != nil {
				return false, err
			}

			if errors.Is(verdicts[0], event.ErrSkip) {
				return false, nil
			}

			return true, verdicts[0]
		},
		perform: func() error {
			result, err := perform(context.Background(), effected.Event)
			effected.Result = &result

			return err
		},
		record: func(commit bool) ([]event.Outgoing, error) {
			return transact(h, m.Payload.Topic(), entry, effected, commit, record)
		},
	}
}

func (h *postgresBackend) orders(s *story) map[string]order.Order {
	folded := map[string]order.Order{}

	for _, p := range s.plans {
		details, err := h.shop.orders.Show(context.Background(), p.id)
		if err != nil {
			s.Fatal(err)
		}

		o, err := order.Fold(p.id, details.History)
		if err != nil || fmt.Sprint(o) != fmt.Sprint(details.Order) || o.Version != len(details.History) {
			s.Fatalf("%s: folded %+v, %v; the state is %+v", p.id, o, err, details)
		}

		folded[p.id] = o
	}

	return folded
}

func (h *postgresBackend) levels(s *story) map[string]inventory.Stock {
	levels := map[string]inventory.Stock{}

	for product := range s.stock {
		list, err := h.stock.List(context.Background(), product)
		if err != nil {
			s.Fatal(err)
		}

		for _, stock := range list {
			levels[product] = stock
		}
	}

	return levels
}

func (h *postgresBackend) payments(s *story) map[string]paid {
	rows, err := h.pool.Query(context.Background(), `
		SELECT order_id, status, coalesce(transaction_id, ''), coalesce(refund_id, '') FROM payments WHERE starts_with(order_id, $1)`, h.prefix)
	if err != nil {
		s.Fatal(err)
	}

	found := map[string]paid{}

	var (
		id  string
		row paid
	)

	if _, err := pgx.ForEachRow(rows, []any{&id, &row.status, &row.transactionID, &row.refundID}, func() error {
		found[id] = row

		return nil
	}); err != nil {
		s.Fatal(err)
	}

	return found
}
