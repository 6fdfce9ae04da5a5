// Package outside stands in for other systems: a payment provider that lies, a mail
// server that comes and goes, and a receiver of webhooks that fails. Each keeps a record
// of its own of what reached it.
package outside

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millracehq/millrace/cmd/proof/record"
)

// Provider implements the part of Stripe's API that the service uses. While it lies, it
// fails before it has done what it was asked, or afterwards.
type Provider struct {
	// URL is its address.
	URL string

	server  *http.Server
	mu      sync.Mutex
	random  *rand.Rand
	percent int
	down    bool
	lies    map[string]int

	intents []*intent
	byID    map[string]*intent
	answers map[string]answer // by idempotency key
}

type intent struct {
	id, status, order, currency, attempt string
	amount                               int64
	created                              int64
	captures                             int
	declined                             bool
	cancelReason                         string
	refunds                              []refund
}

type refund struct {
	id      string
	amount  int64
	created int64
	source  map[string]string
}

type answer struct {
	status int
	body   []byte
}

// StartProvider starts a provider. The seed decides how it lies.
func StartProvider(seed uint64) (*Provider, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}

	p := &Provider{
		URL: "http://" + listener.Addr().String(), random: rand.New(rand.NewPCG(seed, 2)),
		lies: map[string]int{}, byID: map[string]*intent{}, answers: map[string]answer{},
	}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}

	go func() { _ = p.server.Serve(listener) }() // until Close

	return p, nil
}

// Close stops the provider.
func (p *Provider) Close() { _ = p.server.Close() }

// Lie makes it fail this percentage of the requests, in changing ways.
func (p *Provider) Lie(percent int) {
	p.mu.Lock()
	defer p.mu.Unlock()

	p.percent = percent
}

// Down makes it hang up at all requests, or serve them again.
func (p *Provider) Down(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()

	p.down = down
}

// Lies returns how often it failed, by the way it did.
func (p *Provider) Lies() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()

	return maps.Clone(p.lies)
}

// Charges returns all payments that were captured or declined.
func (p *Provider) Charges() (list []record.Charge) {
	p.mu.Lock()
	defer p.mu.Unlock()

	for _, i := range p.intents {
		if i.captures == 0 && !i.declined {
			continue
		}

		c := record.Charge{Order: i.order, Transaction: i.id, Amount: i.amount, Captures: i.captures, Declined: i.declined}
		for _, r := range i.refunds {
			c.Refunds = append(c.Refunds, record.Refund{ID: r.id, Amount: r.amount})
		}

		list = append(list, c)
	}

	return list
}

// Ways to fail. Those that begin with after fail after the request took effect.
var ways = []string{"lost", "500", "stored 500", "429", "409", "after: lost", "after: 500", "after: late", "after: half an answer"}

// ServeHTTP implements http.Handler.
func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)

		return
	}

	p.mu.Lock()
	way := ""

	switch {
	case p.down:
		way = "lost"
	case p.random.IntN(100) < p.percent:
		way = ways[p.random.IntN(len(ways))]
		p.lies["provider "+way]++
	}

	reply, replayed := p.answer(r, way)
	p.mu.Unlock()

	switch way {
	case "lost", "after: lost":
		hangUp(w)

		return
	case "after: late":
		select {
		case <-r.Context().Done():
		case <-time.After(time.Minute):
		}

		return
	case "after: half an answer":
		w.Header().Set("Content-Length", strconv.Itoa(len(reply.body)))
		w.WriteHeader(reply.status)
		_, _ = w.Write(reply.body[:len(reply.body)/2])
		_ = http.NewResponseController(w).Flush()

		panic(http.ErrAbortHandler)
	case "429":
		w.Header().Set("Retry-After", "1")
	}

	if replayed {
		w.Header().Set("Idempotent-Replayed", "true")
	}

	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Request-Id", "req_proof")
	w.WriteHeader(reply.status)
	_, _ = w.Write(reply.body) // the client may have gone
}

// hangUp closes the connection after the first bytes of a response. Without any bytes,
// net/http itself would retry a request with an idempotency key.
func hangUp(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err) // not HTTP/1
	}

	_, _ = conn.Write([]byte("HTTP/1.1 "))
	_ = conn.Close()
}

// answer does what it is asked, unless the answer is stored under the idempotency key.
func (p *Provider) answer(r *http.Request, way string) (reply answer, replayed bool) {
	switch way {
	case "lost":
		return answer{}, false
	case "500":
		return failure(http.StatusInternalServerError, "api_error", ""), false
	case "429":
		return failure(http.StatusTooManyRequests, "invalid_request_error", "rate_limit"), false
	case "409":
		return failure(http.StatusConflict, "idempotency_error", "idempotency_key_in_use"), false
	}

	key := r.Header.Get("Idempotency-Key")
	if before, known := p.answers[key]; key != "" && known {
		return before, true
	}

	if way != "stored 500" {
		reply = p.perform(r)
	}

	if way == "stored 500" || way == "after: 500" {
		reply = failure(http.StatusInternalServerError, "api_error", "")
	}

	if key != "" {
		p.answers[key] = reply
	}

	return reply, false
}

func (p *Provider) perform(r *http.Request) answer {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v1/"), "/")

	switch {
	case parts[0] == "refunds" && r.Method == http.MethodPost:
		return p.refund(r.Form)
	case parts[0] == "refunds":
		return p.refunds(r.Form)
	case len(parts) == 1 && r.Method == http.MethodPost:
		return p.create(r.Form)
	case len(parts) == 1:
		return p.pages(r.Form)
	case parts[1] == "search":
		return p.search(r.Form.Get("query"))
	}

	i := p.byID[parts[1]]

	switch action := parts[len(parts)-1]; {
	case i == nil:
		return failure(http.StatusNotFound, "invalid_request_error", "resource_missing")
	case action == "confirm":
		return i.confirm()
	case action == "cancel":
		return i.cancel(r.Form.Get("cancellation_reason"))
	default:
		return success(i.view())
	}
}

// refunds lists the refunds of an intent, newest first.
func (p *Provider) refunds(form url.Values) answer {
	i := p.byID[form.Get("payment_intent")]
	if i == nil {
		return failure(http.StatusNotFound, "invalid_request_error", "resource_missing")
	}

	views := []any{}
	for _, r := range slices.Backward(i.refunds) {
		views = append(views, r.view(i))
	}

	return list(views)
}

func (p *Provider) create(form url.Values) answer {
	amount, err := strconv.ParseInt(form.Get("amount"), 10, 64)
	if err != nil || amount < 50 {
		return failure(http.StatusBadRequest, "invalid_request_error", "amount_too_small")
	}

	i := &intent{
		id: fmt.Sprintf("pi_%08d", len(p.intents)+1), status: "requires_confirmation", order: form.Get("metadata[order_id]"),
		currency: form.Get("currency"), attempt: form.Get("metadata[attempt]"), amount: amount, created: time.Now().Unix(),
	}
	p.intents, p.byID[i.id] = append(p.intents, i), i

	return success(i.view())
}

func (i *intent) confirm() answer {
	if i.status != "requires_confirmation" {
		return failure(http.StatusBadRequest, "invalid_request_error", "payment_intent_unexpected_state")
	}

	if i.amount%10 == 3 {
		i.status, i.declined = "requires_payment_method", true
		body := i.lastError()
		body["payment_intent"] = i.view()

		return encode(http.StatusPaymentRequired, map[string]any{"error": body})
	}

	i.status = "succeeded"
	i.captures++

	return success(i.view())
}

func (i *intent) cancel(reason string) answer {
	if i.status == "succeeded" || i.status == "canceled" {
		return failure(http.StatusBadRequest, "invalid_request_error", "payment_intent_unexpected_state")
	}

	i.status, i.cancelReason = "canceled", reason

	return success(i.view())
}

func (i *intent) lastError() map[string]any {
	return map[string]any{"type": "card_error", "code": "card_declined", "decline_code": "generic_decline", "message": "Your card was declined."}
}

func (i *intent) view() map[string]any {
	v := map[string]any{
		"id": i.id, "object": "payment_intent", "amount": i.amount, "currency": i.currency, "status": i.status, "created": i.created,
		"metadata": map[string]string{"source": "millrace", "order_id": i.order, "attempt": i.attempt}, "cancellation_reason": i.cancelReason,
	}

	if i.declined {
		v["last_payment_error"] = i.lastError()
	}

	if i.captures > 0 {
		var back int64
		for _, r := range i.refunds {
			back += r.amount
		}

		v["amount_received"] = i.amount
		v["latest_charge"] = map[string]any{"id": "ch_" + i.id, "object": "charge", "amount_refunded": back}
	}

	return v
}

func (r refund) view(i *intent) map[string]any {
	return map[string]any{
		"id": r.id, "object": "refund", "amount": r.amount, "currency": i.currency, "status": "succeeded", "payment_intent": i.id,
		"created": r.created, "metadata": r.source,
	}
}

// refund returns all that is left of a capture. Like Stripe, it returns no more than was
// captured.
func (p *Provider) refund(form url.Values) answer {
	i := p.byID[form.Get("payment_intent")]

	switch {
	case i == nil:
		return failure(http.StatusNotFound, "invalid_request_error", "resource_missing")
	case i.captures == 0:
		return failure(http.StatusBadRequest, "invalid_request_error", "")
	case len(i.refunds) > 0:
		return failure(http.StatusBadRequest, "invalid_request_error", "charge_already_refunded")
	}

	r := refund{
		id: "re_" + i.id, amount: i.amount, created: time.Now().Unix(),
		source: map[string]string{"source": form.Get("metadata[source]"), "order_id": form.Get("metadata[order_id]")},
	}
	i.refunds = append(i.refunds, r)

	return success(r.view(i))
}

func (p *Provider) search(query string) answer {
	found := []any{}

	for _, i := range p.intents {
		if strings.Contains(query, "metadata['order_id']:'"+i.order+"'") {
			found = append(found, i.view())
		}
	}

	return success(map[string]any{"object": "search_result", "data": found, "has_more": false})
}

// pages lists intents, newest first.
func (p *Provider) pages(form url.Values) answer {
	page, started := []any{}, form.Get("starting_after") == ""

	for _, i := range slices.Backward(p.intents) {
		switch {
		case i.id == form.Get("starting_after"):
			started = true
		case !started:
		case len(page) == 100:
			return success(map[string]any{"object": "list", "data": page, "has_more": true})
		default:
			page = append(page, i.view())
		}
	}

	return list(page)
}

func list(items []any) answer {
	return success(map[string]any{"object": "list", "data": items, "has_more": false})
}

func success(body any) answer { return encode(http.StatusOK, body) }

func failure(status int, kind, code string) answer {
	return encode(status, map[string]any{"error": map[string]any{"type": kind, "code": code, "message": "the provider said no"}})
}

func encode(status int, body any) answer {
	data, err := json.Marshal(body)
	if err != nil {
		panic(err) // maps of strings and numbers
	}

	return answer{status: status, body: data}
}
