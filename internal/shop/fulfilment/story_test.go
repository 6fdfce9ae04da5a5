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

// A story is a random run of the process: messages arrive twice, late or before
// their order; deliveries stop halfway; the provider's answers are lost, late or
// arrive only by webhook. In the end everything is delivered, and the invariants
// must hold.
type story struct {
	*rapid.T

	backend    backend
	gateway    *gateway
	plans      []plan
	created    map[string]bool
	stock      map[string]int64 // everything ever supplied
	messages   []*queued
	deliveries []*delivery
	refused    int // orders whose id was taken
}

// backend handles messages: the handlers on Postgres, or Decide on maps.
type backend interface {
	// deliver returns the steps that handle a message, or nil if it has no consumer.
	deliver(m event.Outgoing) *steps
	// orders compares the fold of each stream with the state and returns the folds.
	orders(s *story) map[string]order.Order
	levels(s *story) map[string]inventory.Stock
	payments(s *story) map[string]paid
}

// steps are the steps of an effect. A batch handler has only the last one.
type steps struct {
	admit   func() (proceed bool, err error)
	perform func() error
	record  func(commit bool) ([]event.Outgoing, error)
}

// paid is an order's row in payments.
type paid struct{ status, transactionID, refundID string }

// plan is an order that a story places.
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

// queued is a message on the broker.
type queued struct {
	event.Outgoing

	taken, done, stopped bool
}

// delivery is a message being handled, with its remaining steps.
type delivery struct {
	*steps

	queued *queued
}

// runStory runs a story. The prefix makes its ids unique.
func runStory(t *rapid.T, prefix string, open func(stock map[string]int64, g *gateway) backend) {
	s := &story{T: t, created: map[string]bool{}, stock: map[string]int64{}, gateway: newGateway()}
	s.gateway.fate = func(fates ...string) string { return rapid.SampledFrom(fates).Draw(t, "fate") }

	products := []string{prefix + "p0", prefix + "p1", prefix + "p2"}
	for _, product := range products[:2] { // the third is unknown until it is restocked
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

	s.backend = open(s.stock, s.gateway)

	for range rapid.IntRange(5, 60).Draw(t, "length") {
		s.randomStep()
	}

	s.settle()
	s.check()
}

// randomStep takes one random step, usually working on a message.
func (s *story) randomStep() {
	p := pick(s, "order", s.plans)

	switch rapid.SampledFrom([]string{
		"begin", "begin", "begin", "advance", "advance", "advance", "advance", "advance", "advance",
		"create", "create", "create other", "cancel", "expire", "charge again", "restock", "webhook", "capture", "redeliver", "crash",
	}).Draw(s.T, "event") {
	case "begin":
		if waiting := s.waiting(); len(waiting) > 0 {
			s.begin(pick(s, "mail", waiting))
		}
	case "advance":
		if len(s.deliveries) > 0 {
			s.advance(rapid.IntRange(0, len(s.deliveries)-1).Draw(s.T, "delivery"), rapid.IntRange(0, 9).Draw(s.T, "commit") > 0)
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
	case "capture": // of a charge whose answer was lost
		for _, report := range s.gateway.capturePending() {
			s.publish(event.Start(report))
		}
	case "redeliver":
		if len(s.messages) > 0 {
			m := pick(s, "mail", s.messages)
			m.done = m.done && m.taken // not while it is being handled
		}
	case "crash":
		for _, d := range s.deliveries {
			d.queued.taken = false
		}

		s.deliveries = nil
	}
}

// pick chooses by index, which keeps the draws of a failed story short.
func pick[E any](s *story, what string, from []E) E {
	return from[rapid.IntRange(0, len(from)-1).Draw(s.T, what)]
}

// create publishes an order, for the first time or again. The first publication is
// delivered immediately, because the one with a different body must not precede
// it.
func (s *story) create(p plan) {
	s.publish(p.message(p.total))

	if !s.created[p.id] {
		s.created[p.id] = true
		s.deliver(s.messages[len(s.messages)-1])
	}
}

// begun reports whether the order exists. Messages that only the service itself
// publishes do not precede the order.
func (s *story) begun(id string) bool { return s.created[id] }

func (s *story) publish(messages ...event.Outgoing) {
	for _, m := range messages {
		s.messages = append(s.messages, &queued{Outgoing: m})
	}
}

func (s *story) waiting() []*queued {
	var list []*queued
	for _, m := range s.messages {
		if !m.done && !m.taken {
			list = append(list, m)
		}
	}

	return list
}

func (s *story) begin(m *queued) {
	work := s.backend.deliver(m.Outgoing)
	if work == nil {
		m.done = true

		return
	}

	m.taken = true
	s.deliveries = append(s.deliveries, &delivery{queued: m, steps: work})
}

// advance performs the next step of a delivery.
func (s *story) advance(at int, commit bool) {
	d := s.deliveries[at]

	switch {
	case d.admit != nil:
		proceed, err := d.admit()
		d.admit = nil

		if !proceed {
			d.perform = nil
		}

		if err != nil {
			s.finish(at, err)
		}
	case d.perform != nil:
		err := d.perform()
		d.perform = nil

		if err != nil {
			s.finish(at, err)
		}
	default:
		outgoing, err := d.record(commit)
		s.publish(outgoing...)
		s.finish(at, err)
	}
}

// finish ends a delivery: its message is done, rejected or redelivered.
func (s *story) finish(at int, err error) {
	m := s.deliveries[at].queued
	m.taken = false
	s.deliveries = slices.Delete(s.deliveries, at, at+1)

	rejection, rejected := errors.AsType[*event.RejectError](err)
	if some, ok := errors.AsType[event.RejectSome](err); ok {
		rejection, rejected = errors.AsType[*event.RejectError](some[0])
	}

	if rejected && rejection.Reason != event.ReasonConflict {
		s.Fatalf("a good message failed: %s %+v: %v", m.Payload.Topic(), m.Payload, err)
	}

	m.done = err == nil || rejected

	// A charge that gets no answer may end up stopped.
	if p, isCharge := m.Payload.(fulfilment.PaymentRequested); isCharge && p.Attempt < 2 && err != nil {
		m.stopped = m.stopped || s.gateway.fate("waiting", "stopped") == "stopped"
		m.done = m.done || m.stopped
	}
}

// deliver handles a message until it is done.
func (s *story) deliver(m *queued) {
	for at := len(s.deliveries); !m.done; {
		s.begin(m)

		for len(s.deliveries) > at {
			s.advance(at, true)
		}

		if !m.done && !s.created[m.Payload.Key()] {
			return
		}
	}
}

// settle delivers everything without further faults.
func (s *story) settle() {
	s.gateway.fate = func(fates ...string) string { return fates[0] }

	for _, d := range s.deliveries {
		d.queued.taken = false
	}

	s.deliveries = nil

	for _, p := range s.plans {
		if !s.created[p.id] {
			s.create(p)
		}
	}

	for _, report := range s.gateway.capturePending() {
		s.publish(event.Start(report))
	}

	s.deliverAll()
	s.expireStopped()

	// The provider's reports may arrive at any time, even if they are no longer news.
	for _, report := range s.gateway.news {
		if rapid.Bool().Draw(s.T, "reported") {
			s.publish(event.Start(report))
		}
	}

	s.deliverAll()
}

// expireStopped expires orders whose payment request is stopped. If an order has
// already ended or has a second charge, only the request itself can find out what
// the provider did, so it is requeued.
func (s *story) expireStopped() {
	orders := s.backend.orders(s)
	several := map[string]bool{}

	for _, m := range s.messages {
		if p, isCharge := m.Payload.(fulfilment.PaymentRequested); isCharge && p.Attempt > 1 {
			several[p.OrderID] = true
		}
	}

	for _, m := range s.messages {
		if id := m.Payload.Key(); m.stopped && (several[id] || orders[id].Status.Terminal()) {
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
			s.Fatalf("%d messages are never done, the first is %s %+v", len(waiting), waiting[0].Payload.Topic(), waiting[0].Payload)
		}

		for _, m := range waiting {
			s.deliver(m)
		}
	}
}

// check checks the invariants once everything is delivered.
func (s *story) check() {
	orders := s.backend.orders(s)
	payments := s.backend.payments(s)
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

	levels := s.backend.levels(s)
	for product, supplied := range s.stock {
		want := inventory.Stock{ProductID: product, Supplied: supplied, Available: supplied - sold[product], Sold: sold[product]}
		if got := levels[product]; got != want && supplied > 0 {
			s.Fatalf("stock is %+v, expected %+v", got, want)
		}
	}
}

// checkMoney compares the order with the provider's own record: a completed order has
// been paid exactly once, any other not at all.
func (s *story) checkMoney(o order.Order, row paid) {
	kept := 0

	for _, c := range s.gateway.charges {
		if c.OrderID != o.ID || !c.outcome.Captured() {
			continue
		}

		noted, known := o.Capture(c.outcome.TransactionID)
		if !known || noted.RefundID != c.refundID {
			s.Fatalf("%s is %s: the provider captured %s and refunded %q, but the stream has %+v", o.ID, o.Status, c.outcome.TransactionID, c.refundID, o.Captures)
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

// checkMessages counts the messages published about the order.
func (s *story) checkMessages(o order.Order) {
	published, asked := map[string]int{}, map[string]int{}

	for _, m := range s.messages {
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
			s.Fatalf("the refund of %s was requested %d times", c.TransactionID, asked[c.TransactionID])
		}

		if c.RefundID != "" {
			refunded++
		}
	}

	if n := published[fulfilment.TopicPaymentRefunded]; n != refunded {
		s.Fatalf("%s has %d refunds and payments.refunded was published %d times", o.ID, refunded, n)
	}
}

// gateway is a payment provider with its own ledger. Its answers may be lost. It
// captures and refunds once per key.
type gateway struct {
	payment.Gateway // for Entries, which stories do not call

	// fate chooses the result of a request; the first is the good one.
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
		return payment.Outcome{}, errLost // still in progress
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

// capturePending captures the charges in progress and reports them.
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
