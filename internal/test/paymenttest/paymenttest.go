// Package paymenttest provides a payment provider for tests: an HTTP server that
// implements the parts of Stripe's API that Millrace uses, keeps a ledger, and fails
// on demand. It follows Stripe's documentation of PaymentIntents and idempotency
// keys, including stored failures.
package paymenttest

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Fault is a way for a request to fail.
type Fault string

// Faults. Those that start with After occur after the request has taken effect.
const (
	None         Fault = ""
	Lost         Fault = "lost"          // no response, no effect
	Error        Fault = "500"           // 500, no effect
	StoredError  Fault = "stored:500"    // 500 without effect, stored under the key
	AfterLost    Fault = "after:lost"    // takes effect, no response
	AfterError   Fault = "after:500"     // takes effect, then 500, stored under the key
	AfterSlow    Fault = "after:slow"    // takes effect, response too late
	AfterGarbled Fault = "after:garbled" // takes effect, half a response
	Busy         Fault = "429"           // 429 with Retry-After
	InUse        Fault = "409"           // another request is using the key
)

// RetryAfter is the Retry-After of Busy.
const RetryAfter = 7 * time.Second

// Server is a provider.
type Server struct {
	// URL is the address of the server.
	URL string

	mu       sync.Mutex
	plan     func(operation string) Fault
	declines map[string]string // decline codes by order
	statuses map[string]string // of intents after they are confirmed, by order
	refunded map[string]string // first statuses of refunds by order
	intents  []*intent
	refunds  []*refund
	answers  map[string]answer // by idempotency key
	requests map[string]int    // by operation
	hanging  chan struct{}
}

type intent struct {
	ID               string            `json:"id"`
	Object           string            `json:"object"`
	Amount           int64             `json:"amount"`
	AmountReceived   int64             `json:"amount_received"`
	Currency         string            `json:"currency"`
	Status           string            `json:"status"`
	Created          int64             `json:"created"`
	ClientSecret     string            `json:"client_secret"`
	Metadata         map[string]string `json:"metadata"`
	LastPaymentError map[string]any    `json:"last_payment_error"`
	LatestCharge     *charge           `json:"latest_charge"`
	// CancellationReason is given by whoever cancels the intent.
	CancellationReason string `json:"cancellation_reason"`

	captures int
}

type charge struct {
	ID             string `json:"id"`
	Object         string `json:"object"`
	AmountRefunded int64  `json:"amount_refunded"`
	Disputed       bool   `json:"disputed"`
}

type refund struct {
	ID            string            `json:"id"`
	Object        string            `json:"object"`
	Amount        int64             `json:"amount"`
	Currency      string            `json:"currency"`
	Status        string            `json:"status"`
	PaymentIntent string            `json:"payment_intent"`
	Metadata      map[string]string `json:"metadata"`
	Created       int64             `json:"created"`
	FailureReason string            `json:"failure_reason,omitempty"`
}

type answer struct {
	status int
	body   []byte
	params string
}

// NewServer starts a provider that stops when the test ends.
func NewServer(tb testing.TB) *Server {
	tb.Helper()

	s := &Server{
		plan:     func(string) Fault { return None },
		declines: map[string]string{}, statuses: map[string]string{}, refunded: map[string]string{}, answers: map[string]answer{}, requests: map[string]int{}, hanging: make(chan struct{}),
	}
	server := httptest.NewServer(s)
	s.URL = server.URL

	tb.Cleanup(func() {
		close(s.hanging)
		server.Close()
	})

	return s
}

// Operations that can fail.
const (
	OpCreate   = "create"
	OpConfirm  = "confirm"
	OpRetrieve = "retrieve"
	OpSearch   = "search"
	OpList     = "list"
	OpRefund   = "refund"
	OpRefunds  = "refunds"
	OpCancel   = "cancel"
)

// Plan makes fn decide how each request fails. Calls do not overlap.
func (s *Server) Plan(fn func(operation string) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()

	s.plan = fn
}

// Fail makes the next requests of an operation fail, one per fault.
func (s *Server) Fail(operation string, faults ...Fault) {
	s.Plan(func(asked string) Fault {
		if asked != operation || len(faults) == 0 {
			return None
		}

		next := faults[0]
		faults = faults[1:]

		return next
	})
}

// Decline makes the server decline the card for an order with one of Stripe's codes.
func (s *Server) Decline(orderID, code string) {
	s.mu.Lock()
	defer s.mu.Unlock()

	s.declines[orderID] = code
}

// Hold gives an order's intents a status such as processing or requires_action once they
// are confirmed, until Settle is called.
func (s *Server) Hold(orderID, status string) {
	s.mu.Lock()
	defer s.mu.Unlock()

	s.statuses[orderID] = status
}

// Settle captures or cancels an order's intents that Hold has held.
func (s *Server) Settle(orderID string, captured bool) {
	s.mu.Lock()
	defer s.mu.Unlock()

	for _, i := range s.intents {
		switch {
		case i.Metadata["order_id"] != orderID || i.Status != s.statuses[orderID]:
		case captured:
			i.capture()
		default:
			i.Status = "canceled"
		}
	}

	delete(s.statuses, orderID)
}

// Age makes an order's intents look older.
func (s *Server) Age(orderID string, age time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()

	for _, i := range s.intents {
		if i.Metadata["order_id"] == orderID {
			i.Created = time.Now().Add(-age).Unix()
		}
	}
}

// HoldRefunds keeps an order's refunds pending until SettleRefunds is called.
func (s *Server) HoldRefunds(orderID string) {
	s.mu.Lock()
	defer s.mu.Unlock()

	s.refunded[orderID] = "pending"
}

// SettleRefunds sets the status of an order's refunds: succeeded, or failed with a reason.
// A refund that fails returns the money to the shop. Refunds that have succeeded may
// still fail.
func (s *Server) SettleRefunds(orderID, status, reason string) (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()

	delete(s.refunded, orderID)

	for _, r := range s.refunds {
		if s.find(r.PaymentIntent).Metadata["order_id"] == orderID {
			s.settleRefund(r, status, reason)
			ids = append(ids, r.ID)
		}
	}

	return ids
}

// SettleRefund is SettleRefunds for one refund.
func (s *Server) SettleRefund(id, status, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()

	for _, r := range s.refunds {
		if r.ID == id {
			s.settleRefund(r, status, reason)
		}
	}
}

func (s *Server) settleRefund(r *refund, status, reason string) {
	returned := func(status string) bool { return status == "failed" || status == "canceled" }
	if returned(status) && !returned(r.Status) {
		s.find(r.PaymentIntent).LatestCharge.AmountRefunded -= r.Amount
	}

	r.Status, r.FailureReason = status, reason
}

// RefundByHand refunds part of an intent, as a person would in the dashboard.
func (s *Server) RefundByHand(intentID string, units int64, status string) (id string) {
	s.mu.Lock()
	defer s.mu.Unlock()

	return s.newRefund(s.find(intentID), units, status, nil).ID
}

// Dispute makes the customer dispute an order's captures.
func (s *Server) Dispute(orderID string) {
	s.mu.Lock()
	defer s.mu.Unlock()

	for _, i := range s.intents {
		if i.Metadata["order_id"] == orderID && i.LatestCharge != nil {
			i.LatestCharge.Disputed = true
		}
	}
}

// ForgetKeys forgets the idempotency keys, as Stripe does after a day.
func (s *Server) ForgetKeys() {
	s.mu.Lock()
	defer s.mu.Unlock()

	clear(s.answers)
}

// Requests returns the number of requests for an operation.
func (s *Server) Requests(operation string) int {
	s.mu.Lock()
	defer s.mu.Unlock()

	return s.requests[operation]
}

// Captured returns the number of captures and refunds of an order, and their net sum
// in minor units.
func (s *Server) Captured(orderID string) (captures, refunds int, net int64) {
	s.mu.Lock()
	defer s.mu.Unlock()

	for _, i := range s.intents {
		if i.Metadata["order_id"] != orderID {
			continue
		}

		captures += i.captures
		net += i.Amount * int64(i.captures)

		for _, r := range s.refunds {
			if r.PaymentIntent == i.ID && r.Status == "succeeded" {
				refunds++
				net -= r.Amount
			}
		}
	}

	return captures, refunds, net
}

// Give creates an intent with the status succeeded that Millrace did not request.
func (s *Server) Give(units int64, currency string, metadata map[string]string) (id string) {
	s.mu.Lock()
	defer s.mu.Unlock()

	i := s.newIntent(units, currency, metadata)
	i.capture()

	return i.ID
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)

		return
	}

	operation, id := route(r)

	s.mu.Lock()
	s.requests[operation]++
	fault := s.plan(operation)
	reply, replayed := s.answer(operation, id, fault, r)
	s.mu.Unlock()

	switch fault {
	case Lost, AfterLost:
		hangUp(w)

		return
	case AfterSlow:
		select {
		case <-r.Context().Done():
		case <-s.hanging:
		}

		return
	case AfterGarbled:
		w.Header().Set("Content-Length", strconv.Itoa(len(reply.body)))
		w.WriteHeader(reply.status)
		_, _ = w.Write(reply.body[:len(reply.body)/2])
		_ = http.NewResponseController(w).Flush()

		panic(http.ErrAbortHandler)
	case Busy:
		w.Header().Set("Retry-After", strconv.Itoa(int(RetryAfter.Seconds())))
	}

	if replayed {
		w.Header().Set("Idempotent-Replayed", "true")
	}

	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Request-Id", "req_test")
	w.WriteHeader(reply.status)
	_, _ = w.Write(reply.body)
}

// hangUp closes the connection after the first bytes of a response. Without any
// bytes, net/http itself would retry a request with an idempotency key.
func hangUp(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err) // not HTTP/1
	}

	_, _ = conn.Write([]byte("HTTP/1.1 "))
	_ = conn.Close()
}

// operations maps methods and paths to operations.
var operations = map[string]string{
	"POST payment_intents":            OpCreate,
	"GET payment_intents":             OpList,
	"GET payment_intents/search":      OpSearch,
	"GET payment_intents/ID":          OpRetrieve,
	"POST payment_intents/ID/confirm": OpConfirm,
	"POST payment_intents/ID/cancel":  OpCancel,
	"POST refunds":                    OpRefund,
	"GET refunds":                     OpRefunds,
}

func route(r *http.Request) (operation, id string) {
	path := strings.TrimPrefix(r.URL.Path, "/v1/")

	if parts := strings.Split(path, "/"); len(parts) > 1 && parts[1] != "search" {
		id, parts[1] = parts[1], "ID"
		path = strings.Join(parts, "/")
	}

	return operations[r.Method+" "+path], id
}

// answer executes a request, unless a response is stored under its key.
func (s *Server) answer(operation, id string, fault Fault, r *http.Request) (reply answer, replayed bool) {
	switch fault {
	case Lost:
		return answer{}, false
	case Error:
		// The request did not start, so nothing is stored.
		return failure(http.StatusInternalServerError, "api_error", "", "", "it broke"), false
	case Busy:
		return failure(http.StatusTooManyRequests, "invalid_request_error", "rate_limit", "", "too many requests"), false
	case InUse:
		return failure(http.StatusConflict, "idempotency_error", "idempotency_key_in_use", "", "another request has this key"), false
	}

	key, params := r.Header.Get("Idempotency-Key"), r.Method+r.URL.Path+"?"+r.PostForm.Encode()

	if key != "" {
		if before, known := s.answers[key]; known && before.params != params {
			return failure(http.StatusBadRequest, "idempotency_error", "", "", "the key was used with other parameters"), false
		} else if known {
			return before, true
		}
	}

	if fault != StoredError {
		reply = s.perform(operation, id, r.Form)
	}

	if fault == StoredError || fault == AfterError {
		reply = failure(http.StatusInternalServerError, "api_error", "", "", "the request failed midway")
	}

	if key != "" {
		reply.params = params
		s.answers[key] = reply
	}

	return reply, false
}

func (s *Server) perform(operation, id string, form url.Values) answer {
	switch operation {
	case OpCreate:
		units, err := strconv.ParseInt(form.Get("amount"), 10, 64)
		if err != nil || units < 50 {
			return failure(http.StatusBadRequest, "invalid_request_error", "amount_too_small", "amount", "the amount must be 50 or more")
		}

		return success(s.newIntent(units, form.Get("currency"), metadataOf(form)))
	case OpConfirm:
		return s.confirm(s.find(id))
	case OpCancel:
		return cancel(s.find(id), form.Get("cancellation_reason"))
	case OpRetrieve:
		if i := s.find(id); i != nil {
			return success(i)
		}
	case OpSearch:
		return success(map[string]any{"object": "search_result", "data": s.search(form.Get("query")), "has_more": false})
	case OpList:
		return s.list(form)
	case OpRefund:
		return s.refund(s.find(form.Get("payment_intent")), metadataOf(form))
	case OpRefunds:
		if s.find(form.Get("payment_intent")) == nil {
			break
		}

		made := slices.DeleteFunc(slices.Clone(s.refunds), func(r *refund) bool { return r.PaymentIntent != form.Get("payment_intent") })
		slices.Reverse(made) // newest first, like Stripe

		return success(map[string]any{"object": "list", "data": made, "has_more": false})
	}

	return failure(http.StatusNotFound, "invalid_request_error", "resource_missing", "", "no such resource: "+id)
}

func (s *Server) newIntent(units int64, currency string, metadata map[string]string) *intent {
	i := &intent{
		ID: "pi_" + strings.ToLower(rand.Text()), Object: "payment_intent",
		Amount: units, Currency: currency, Status: "requires_confirmation", Created: time.Now().Unix(),
		ClientSecret: "pi_secret_hunter2", Metadata: metadata,
	}
	s.intents = append(s.intents, i)

	return i
}

func (s *Server) find(id string) *intent {
	for _, i := range s.intents {
		if i.ID == id {
			return i
		}
	}

	return nil
}

func (i *intent) capture() {
	i.captures++
	i.Status, i.AmountReceived = "succeeded", i.Amount
	i.LatestCharge = &charge{ID: "ch_" + i.ID, Object: "charge"}
}

// confirm charges an intent, unless it has already been charged.
func (s *Server) confirm(i *intent) answer {
	switch {
	case i == nil:
		return failure(http.StatusNotFound, "invalid_request_error", "resource_missing", "intent", "no such payment_intent")
	case i.Status != "requires_confirmation":
		return failure(http.StatusBadRequest, "invalid_request_error", "payment_intent_unexpected_state", "", "it has status "+i.Status)
	}

	if code := s.declines[i.Metadata["order_id"]]; code != "" {
		i.Status = "requires_payment_method"
		i.LastPaymentError = map[string]any{
			"type": "card_error", "code": "card_declined", "decline_code": code, "message": "Your card was declined.",
		}
		body := maps.Clone(i.LastPaymentError)
		body["payment_intent"] = i

		return encode(http.StatusPaymentRequired, map[string]any{"error": body})
	}

	if status := s.statuses[i.Metadata["order_id"]]; status != "" {
		i.Status = status
	} else {
		i.capture()
	}

	return success(i)
}

// cancel cancels an intent, unless it has ended or is being processed.
func cancel(i *intent, reason string) answer {
	switch {
	case i == nil:
		return failure(http.StatusNotFound, "invalid_request_error", "resource_missing", "intent", "no such payment_intent")
	case i.Status == "succeeded" || i.Status == "canceled" || i.Status == "processing":
		return failure(http.StatusBadRequest, "invalid_request_error", "payment_intent_unexpected_state", "", "it has status "+i.Status)
	}

	i.Status, i.CancellationReason = "canceled", reason

	return success(i)
}

func (s *Server) search(query string) []*intent {
	found := []*intent{}

	for _, i := range s.intents {
		matches := true

		for part := range strings.SplitSeq(query, " AND ") {
			name, value, _ := strings.Cut(strings.TrimPrefix(part, "metadata['"), "']:'")
			matches = matches && i.Metadata[name] == strings.NewReplacer(`\'`, `'`, `\\`, `\`).Replace(strings.TrimSuffix(value, "'"))
		}

		if matches {
			found = append(found, i)
		}
	}

	return found
}

// list returns pages, newest first, like Stripe.
func (s *Server) list(form url.Values) answer {
	limit, _ := strconv.Atoi(form.Get("limit"))
	limit = cmp.Or(limit, 10)

	if limit > 100 {
		return failure(http.StatusBadRequest, "invalid_request_error", "", "limit", "expected at most 100")
	}

	since, _ := strconv.ParseInt(form.Get("created[gte]"), 10, 64)
	page, more, after := []*intent{}, false, form.Get("starting_after")
	started := after == ""

	for _, i := range slices.Backward(s.intents) {
		switch {
		case i.ID == after:
			started = true
		case !started || i.Created < since:
		case len(page) == limit:
			more = true
		default:
			page = append(page, i)
		}
	}

	return success(map[string]any{"object": "list", "data": page, "has_more": more})
}

func (s *Server) refund(i *intent, metadata map[string]string) answer {
	switch {
	case i == nil:
		return failure(http.StatusNotFound, "invalid_request_error", "resource_missing", "payment_intent", "no such payment_intent")
	case i.captures == 0:
		return failure(http.StatusBadRequest, "invalid_request_error", "", "payment_intent", "it has no successful charge to refund")
	case i.LatestCharge.AmountRefunded == i.Amount:
		return failure(http.StatusBadRequest, "invalid_request_error", "charge_already_refunded", "", "the charge has already been refunded")
	}

	status := cmp.Or(s.refunded[i.Metadata["order_id"]], "succeeded")

	return success(s.newRefund(i, i.Amount-i.LatestCharge.AmountRefunded, status, metadata))
}

func (s *Server) newRefund(i *intent, units int64, status string, metadata map[string]string) *refund {
	r := &refund{
		ID: fmt.Sprintf("re_%06d", len(s.refunds)), Object: "refund", Status: status, Created: time.Now().Unix(),
		Amount: units, Currency: i.Currency, PaymentIntent: i.ID, Metadata: metadata,
	}
	s.refunds = append(s.refunds, r)
	i.LatestCharge.AmountRefunded += units

	return r
}

func metadataOf(form url.Values) map[string]string {
	metadata := map[string]string{}

	for name := range form {
		if key, ok := strings.CutPrefix(name, "metadata["); ok {
			metadata[strings.TrimSuffix(key, "]")] = form.Get(name)
		}
	}

	return metadata
}

func success(body any) answer { return encode(http.StatusOK, body) }

func failure(status int, kind, code, param, message string) answer {
	return encode(status, map[string]any{"error": map[string]any{"type": kind, "code": code, "param": param, "message": message}})
}

func encode(status int, body any) answer {
	data, err := json.Marshal(body)
	if err != nil {
		panic(err) // maps and structs of strings and numbers
	}

	return answer{status: status, body: data}
}
