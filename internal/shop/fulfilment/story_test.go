package fulfilment_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// A story is a run of the process in which whatever can happen does, at any
// time: messages come twice, late and before their order; deliveries stop half
// way; the provider's answers are lost, or late, or come by webhook alone. In
// the end everything is delivered, and the invariants must hold.
type story struct {
	*rapid.T

	floor   floor
	gateway *gateway
	plans   []plan
	created map[string]bool
	stock   map[string]int64 // all that was ever supplied
	mail    []*mail
	hand    []*delivery
	refused int // orders with an id that was taken
}

// floor is where messages are handled: the handlers on Postgres, or Decide on
// maps.
type floor interface {
	// deliver returns the steps to handle a message, nil if nobody consumes it.
	deliver(m event.Outgoing) *steps
	// orders returns the folds of all streams, after comparing them with the state.
	orders(s *story) map[string]order.Order
	levels(s *story) map[string]inventory.Stock
	payments(s *story) map[string]paid
}

// steps are those of an effect; a batch handler has the last only.
type steps struct {
	admit   func() (proceed bool, err error)
	perform func() error
	record  func(commit bool) ([]event.Outgoing, error)
}

// paid is what the payments say of an order.
type paid struct{ status, transactionID, refundID string }

// plan is an order to be.
type plan struct {
	id    string
	lines []order.Line
	total money.Amount
}

func (p plan) message(total money.Amount) event.Outgoing {
	body := fulfilment.NewOrder{ID: p.id, TotalAmount: &total, Currency: "USD"}
	for _, line := range p.lines {
		body.Items = append(body.Items, fulfilment.Item{ProductID: line.ProductID, Quantity: &line.Quantity})
	}

	return event.Start(fulfilment.OrderCreated{Order: body})
}

// mail is a message in the broker.
type mail struct {
	event.Outgoing

	taken, done bool
	// givenUp says that it is stopped.
	givenUp bool
}

// delivery is a message in hand, with the steps that are left.
type delivery struct {
	*steps

	mail *mail
}

// tell runs a story; prefix keeps the ids of stories apart.
func tell(t *rapid.T, prefix string, open func(stock map[string]int64, g *gateway) floor) {
	s := &story{T: t, created: map[string]bool{}, stock: map[string]int64{}, gateway: newGateway()}
	s.gateway.fate = func(fates ...string) string { return rapid.SampledFrom(fates).Draw(t, "fate") }

	products := []string{prefix + "p0", prefix + "p1", prefix + "p2"}
	for _, product := range products[:2] { // the third is not known until it comes
		s.stock[product] = int64(rapid.IntRange(0, 5).Draw(t, "stock"))
	}

	for i := range rapid.IntRange(1, 3).Draw(t, "orders") {
		p := plan{id: fmt.Sprint(prefix, "o", i), total: money.MustParse("10")}
		for _, product := range products {
			if n := rapid.IntRange(0, 2).Draw(t, "quantity"); n > 0 || product == products[2] && len(p.lines) == 0 {
				p.lines = append(p.lines, order.Line{ProductID: product, Quantity: int64(max(n, 1))})
			}
		}

		s.plans = append(s.plans, p)
	}

	s.floor = open(s.stock, s.gateway)

	for range rapid.IntRange(5, 60).Draw(t, "length") {
		s.happen()
	}

	s.settle()
	s.check()
}

// happen lets one thing happen. Work on messages is the most frequent.
func (s *story) happen() {
	p := pick(s, "order", s.plans)

	switch rapid.SampledFrom([]string{
		"begin", "begin", "begin", "go on", "go on", "go on", "go on", "go on", "go on",
		"create", "create", "create other", "cancel", "expire", "charge again", "restock", "webhook", "capture", "redeliver", "crash",
	}).Draw(s.T, "event") {
	case "begin":
		if waiting := s.waiting(); len(waiting) > 0 {
			s.begin(pick(s, "mail", waiting))
		}
	case "go on":
		if len(s.hand) > 0 {
			s.goOn(rapid.IntRange(0, len(s.hand)-1).Draw(s.T, "delivery"), rapid.IntRange(0, 9).Draw(s.T, "commit") > 0)
		}
	case "create":
		s.create(p)
	case "create other":
		if s.created[p.id] {
			s.refused++
			s.publish(p.message(money.MustParse("11")))
		}
	case "cancel":
		s.publish(event.Start(fulfilment.CancelRequested{OrderID: p.id, Reason: "why"}))
	case "expire":
		if s.begun(p.id) {
			s.publish(event.Start(fulfilment.ExpiryDue{OrderID: p.id}))
		}
	case "charge again":
		if s.begun(p.id) {
			s.publish(event.Start(fulfilment.PaymentRequested{OrderID: p.id, Amount: &p.total, Attempt: rapid.IntRange(1, 2).Draw(s.T, "attempt")}))
		}
	case "restock":
		line := pick(s, "line", p.lines)
		s.stock[line.ProductID] += line.Quantity
		s.publish(event.Start(inventory.Restocked{ProductID: line.ProductID, Quantity: &line.Quantity}))
	case "webhook":
		if len(s.gateway.news) > 0 {
			s.publish(event.Start(pick(s, "news", s.gateway.news)))
		}
	case "capture": // of a charge whose answer never came
		for _, report := range s.gateway.capturePending() {
			s.publish(event.Start(report))
		}
	case "redeliver":
		if len(s.mail) > 0 {
			m := pick(s, "mail", s.mail)
			m.done = m.done && m.taken // in hand: not twice at once
		}
	case "crash":
		for _, d := range s.hand {
			d.mail.taken = false
		}

		s.hand = nil
	}
}

// pick chooses by index: a short draw to read when a story fails.
func pick[E any](s *story, what string, from []E) E {
	return from[rapid.IntRange(0, len(from)-1).Draw(s.T, what)]
}

// create publishes an order, for the first time or once more. The one with
// another body must not come first.
func (s *story) create(p plan) {
	s.publish(p.message(p.total))

	if !s.created[p.id] {
		s.created[p.id] = true
		s.deliver(s.mail[len(s.mail)-1])
	}
}

// begun reports whether the order exists: what only the service itself
// publishes does not come before.
func (s *story) begun(id string) bool { return s.created[id] }

func (s *story) publish(messages ...event.Outgoing) {
	for _, m := range messages {
		s.mail = append(s.mail, &mail{Outgoing: m})
	}
}

func (s *story) waiting() []*mail {
	var list []*mail
	for _, m := range s.mail {
		if !m.done && !m.taken {
			list = append(list, m)
		}
	}

	return list
}

func (s *story) begin(m *mail) {
	work := s.floor.deliver(m.Outgoing)
	if work == nil {
		m.done = true

		return
	}

	m.taken = true
	s.hand = append(s.hand, &delivery{mail: m, steps: work})
}

// goOn takes a delivery a step further.
func (s *story) goOn(at int, commit bool) {
	d := s.hand[at]

	switch {
	case d.admit != nil:
		proceed, err := d.admit()
		d.admit = nil

		if !proceed {
			d.perform = nil
		}

		if err != nil {
			s.end(at, err)
		}
	case d.perform != nil:
		err := d.perform()
		d.perform = nil

		if err != nil {
			s.end(at, err)
		}
	default:
		outgoing, err := d.record(commit)
		s.publish(outgoing...)
		s.end(at, err)
	}
}

// end puts a message down: it is done, at fault, or comes again.
func (s *story) end(at int, err error) {
	m := s.hand[at].mail
	m.taken = false
	s.hand = slices.Delete(s.hand, at, at+1)

	rejection, rejected := errors.AsType[*event.RejectError](err)
	if some, ok := errors.AsType[event.RejectSome](err); ok {
		rejection, rejected = errors.AsType[*event.RejectError](some[0])
	}

	if rejected && rejection.Reason != event.ReasonConflict {
		s.Fatalf("a good message failed: %s %+v: %v", m.Payload.Topic(), m.Payload, err)
	}

	m.done = err == nil || rejected

	// A charge whose answer does not come may end up stopped.
	if p, isCharge := m.Payload.(fulfilment.PaymentRequested); isCharge && p.Attempt < 2 && err != nil {
		m.givenUp = m.givenUp || s.gateway.fate("try again", "give up") == "give up"
		m.done = m.done || m.givenUp
	}
}

// deliver takes a message to its end.
func (s *story) deliver(m *mail) {
	for at := len(s.hand); !m.done; {
		s.begin(m)

		for len(s.hand) > at {
			s.goOn(at, true)
		}

		if !m.done && !s.created[m.Payload.Key()] {
			return
		}
	}
}

// settle delivers everything, without further faults.
func (s *story) settle() {
	s.gateway.fate = func(fates ...string) string { return fates[0] }

	for _, d := range s.hand {
		d.mail.taken = false
	}

	s.hand = nil

	for _, p := range s.plans {
		if !s.created[p.id] {
			s.create(p)
		}
	}

	for _, report := range s.gateway.capturePending() {
		s.publish(event.Start(report))
	}

	s.deliverAll()
	s.giveIn()

	// What the provider has to tell comes at some time, also what is known.
	for _, report := range s.gateway.news {
		if rapid.Bool().Draw(s.T, "told") {
			s.publish(event.Start(report))
		}
	}

	s.deliverAll()
}

// giveIn ends orders whose payment request is stopped: they expire.
// When they have ended already, or there is a second charge, only the request
// itself finds out what the provider did: somebody requeues it.
func (s *story) giveIn() {
	orders := s.floor.orders(s)
	several := map[string]bool{}

	for _, m := range s.mail {
		if p, isCharge := m.Payload.(fulfilment.PaymentRequested); isCharge && p.Attempt > 1 {
			several[p.OrderID] = true
		}
	}

	for _, m := range s.mail {
		if id := m.Payload.Key(); m.givenUp && (several[id] || orders[id].Status.Terminal()) {
			m.done = false
		}
	}

	for _, p := range s.plans {
		s.publish(event.Start(fulfilment.ExpiryDue{OrderID: p.id}))
	}

	s.deliverAll()
}

func (s *story) deliverAll() {
	for rounds := 0; ; rounds++ {
		waiting := s.waiting()
		if len(waiting) == 0 {
			return
		}

		if rounds == 100 {
			s.Fatalf("%d messages never end, the first is %s %+v", len(waiting), waiting[0].Payload.Topic(), waiting[0].Payload)
		}

		for _, m := range waiting {
			s.deliver(m)
		}
	}
}

// check checks the invariants at rest.
func (s *story) check() {
	orders := s.floor.orders(s)
	payments := s.floor.payments(s)
	sold := map[string]int64{}

	if len(orders) != len(s.plans) {
		s.Fatalf("%d orders, expected %d", len(orders), len(s.plans))
	}

	for _, p := range s.plans {
		o := orders[p.id]
		if !o.Status.Terminal() || !o.Total.Equal(p.total) {
			s.Fatalf("%s is %s at %s", p.id, o.Status, o.Total)
		}

		s.checkMoney(o, payments[p.id])
		s.checkMessages(o)

		if o.Status == order.StatusCompleted {
			for _, line := range o.Lines {
				sold[line.ProductID] += line.Quantity
			}
		}
	}

	levels := s.floor.levels(s)
	for product, supplied := range s.stock {
		want := inventory.Stock{ProductID: product, Supplied: supplied, Available: supplied - sold[product], Sold: sold[product]}
		if got := levels[product]; got != want && supplied > 0 {
			s.Fatalf("stock is %+v, expected %+v", got, want)
		}
	}
}

// checkMoney compares the order with the provider's own record: what is
// completed has paid once, and nobody else has paid anything.
func (s *story) checkMoney(o order.Order, row paid) {
	kept := 0

	for _, c := range s.gateway.charges {
		if c.OrderID != o.ID || !c.outcome.Captured() {
			continue
		}

		noted, known := o.Capture(c.outcome.TransactionID)
		if !known || noted.RefundID != c.refundID {
			s.Fatalf("%s is %s: the provider captured %s and refunded %q, the stream says %+v", o.ID, o.Status, c.outcome.TransactionID, c.refundID, o.Captures)
		}

		if c.refundID == "" {
			kept++
		}
	}

	want := 0
	if o.Status == order.StatusCompleted {
		want = 1
	}

	if kept != want {
		s.Fatalf("%s is %s with %d payments: %+v", o.ID, o.Status, kept, o.Captures)
	}

	switch noted, known := o.Capture(row.transactionID); {
	case o.Status == order.StatusCompleted && row.status != "captured",
		row.status == "captured" && o.Status != order.StatusCompleted,
		row.status == "refunded" && (!known || noted.RefundID != row.refundID),
		row.status != "captured" && row.status != "refunded" && len(o.Captures) > 0:
		s.Fatalf("%s is %s with %+v, its payment is %+v", o.ID, o.Status, o.Captures, row)
	}
}

// checkMessages counts what was published about the order.
func (s *story) checkMessages(o order.Order) {
	published, asked := map[string]int{}, map[string]int{}

	for _, m := range s.mail {
		if m.Payload.Key() == o.ID && m.Causation != [16]byte{} {
			published[m.Payload.Topic()]++
		}

		if p, isRefund := m.Payload.(fulfilment.RefundRequested); isRefund {
			asked[p.TransactionID]++
		}
	}

	for topic, want := range map[string]bool{
		fulfilment.TopicOrderRejected:  o.Status == order.StatusInventoryUnavailable || o.Status == order.StatusPaymentFailed,
		fulfilment.TopicOrderExpired:   o.Status == order.StatusExpired,
		fulfilment.TopicOrderCancelled: o.Status == order.StatusCancelled,
	} {
		if n := published[topic]; n > 1 || (n == 1) != want {
			s.Fatalf("%s is %s and %s was published %d times", o.ID, o.Status, topic, n)
		}
	}

	if n := published[fulfilment.TopicOrderCompleted]; n > 1 || o.Status == order.StatusCompleted && n == 0 {
		s.Fatalf("%s is %s and orders.completed was published %d times", o.ID, o.Status, n)
	}

	refunded := 0

	for _, c := range o.Captures {
		if asked[c.TransactionID] > 1 {
			s.Fatalf("the refund of %s was asked for %d times", c.TransactionID, asked[c.TransactionID])
		}

		if c.RefundID != "" {
			refunded++
		}
	}

	if n := published[fulfilment.TopicPaymentRefunded]; n != refunded {
		s.Fatalf("%s has %d refunds and payments.refunded was published %d times", o.ID, refunded, n)
	}
}

// gateway is a payment provider with a ledger of its own, whose answers may be
// lost. It captures and refunds once per key.
type gateway struct {
	payment.Gateway // for Entries, which no story calls

	// fate chooses what happens to a request; the first is what should.
	fate    func(fates ...string) string
	charges map[string]*charge
	keys    []string
	news    []payment.Reported
	refunds int
}

type charge struct {
	payment.Charge

	outcome  payment.Outcome
	refundID string
}

func newGateway() *gateway {
	return &gateway{charges: map[string]*charge{}, fate: func(fates ...string) string { return fates[0] }}
}

var errLost = errors.New("the provider does not answer")

// Charge implements payment.Gateway.
func (g *gateway) Charge(_ context.Context, request payment.Charge) (payment.Outcome, error) {
	key := request.IdempotencyKey()

	c, known := g.charges[key]
	if known && c.outcome == (payment.Outcome{}) {
		return payment.Outcome{}, errLost // it is still at it
	}

	fate := "captured"
	if !known {
		fate = g.fate("captured", "declined", "captured, answer lost", "declined, answer lost", "captured later", "lost")
	}

	if fate == "lost" {
		return payment.Outcome{}, errLost
	}

	if !known {
		c = &charge{Charge: request}
		g.charges[key], g.keys = c, append(g.keys, key)

		switch fate {
		case "captured", "captured, answer lost":
			g.capture(key)
		case "declined", "declined, answer lost":
			c.outcome.Declined = "no money"
			g.news = append(g.news, payment.Reported{
				OrderID: c.OrderID, Attempt: c.Attempt, Outcome: payment.ReportDeclined, Amount: &c.Amount, Currency: c.Currency, Reason: "no money",
			})
		}
	}

	if fate != "captured" && fate != "declined" {
		return payment.Outcome{}, errLost
	}

	return c.outcome, nil
}

func (g *gateway) capture(key string) payment.Reported {
	c := g.charges[key]
	c.outcome.TransactionID = "txn-" + key

	report := payment.Reported{
		OrderID: c.OrderID, Attempt: c.Attempt, Outcome: payment.ReportCaptured, TransactionID: c.outcome.TransactionID, Amount: &c.Amount, Currency: c.Currency,
	}
	g.news = append(g.news, report)

	return report
}

// capturePending captures what the provider was still at, and reports it.
func (g *gateway) capturePending() (reports []payment.Reported) {
	for _, key := range g.keys {
		if g.charges[key].outcome == (payment.Outcome{}) {
			reports = append(reports, g.capture(key))
		}
	}

	return reports
}

// Find implements payment.Gateway.
func (g *gateway) Find(_ context.Context, request payment.Charge) (payment.Outcome, error) {
	if g.fate("answered", "lost") == "lost" {
		return payment.Outcome{}, errLost
	}

	if c, known := g.charges[request.IdempotencyKey()]; known {
		return c.outcome, nil
	}

	return payment.Outcome{}, nil
}

// Refund implements payment.Gateway.
func (g *gateway) Refund(_ context.Context, request payment.Refund) (string, error) {
	for _, key := range g.keys {
		c := g.charges[key]
		if c.outcome.TransactionID != request.TransactionID {
			continue
		}

		if c.OrderID != request.OrderID || !c.Amount.Equal(request.Amount) || c.Currency != request.Currency {
			return "", &payment.RefusedError{Reason: fmt.Sprintf("%+v does not refund %+v", request, c)}
		}

		fate := g.fate("refunded", "refunded, answer lost", "lost")
		if fate == "lost" {
			return "", errLost
		}

		if c.refundID == "" {
			g.refunds++
			c.refundID = fmt.Sprint("ref-", key)
			g.news = append(g.news, payment.Reported{
				OrderID: c.OrderID, Attempt: c.Attempt, Outcome: payment.ReportRefunded, TransactionID: request.TransactionID,
				RefundID: c.refundID, Amount: &c.Amount, Currency: c.Currency,
			})
		}

		if fate != "refunded" {
			return "", errLost
		}

		return c.refundID, nil
	}

	return "", &payment.RefusedError{Reason: "there is no capture " + request.TransactionID}
}

// Ledger implements payment.Gateway.
func (g *gateway) Ledger(_ context.Context, _ time.Time, fn func(payment.Entry) error) error {
	for _, key := range g.keys {
		c := g.charges[key]
		if !c.outcome.Captured() {
			continue
		}

		entry := payment.Entry{OrderID: c.OrderID, TransactionID: c.outcome.TransactionID, Amount: c.Amount, Currency: c.Currency}
		if c.refundID != "" {
			entry.Refunded = c.Amount
		}

		if err := fn(entry); err != nil {
			return err
		}
	}

	return nil
}
