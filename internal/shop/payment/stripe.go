package payment

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stripe/stripe-go/v82"

	"github.com/millracehq/millrace/internal/engine/event"
)

// Stripe charges through PaymentIntents of Stripe, one for each attempt at an
// order. An intent is made, its id is written down, and only then is it
// confirmed, which is what moves money and what Stripe does once for an intent.
// So a charge is repeated safely however long after: Stripe's idempotency keys
// protect for a day only, and give a stored 500 again for just as long.
type Stripe struct {
	client *stripe.Client
	method string
	pool   *pgxpool.Pool
}

func newStripe(cfg StripeConfig, pool *pgxpool.Pool) *Stripe {
	backend := stripe.GetBackendWithConfig(stripe.APIBackend, &stripe.BackendConfig{
		URL: stripe.String(cfg.URL),
		HTTPClient: &http.Client{
			Timeout:   cfg.Timeout,
			Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true},
			// A redirect could lead anywhere, and the key with it.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		MaxNetworkRetries: new(int64(0)), // the consumer tries again
		LeveledLogger:     &stripe.LeveledLogger{Level: stripe.LevelNull},
		EnableTelemetry:   new(false),
	})

	return &Stripe{
		client: stripe.NewClient(string(cfg.SecretKey), stripe.WithBackends(&stripe.Backends{API: backend})),
		method: cfg.PaymentMethod,
		pool:   pool,
	}
}

// Metadata of what is made at Stripe. The source tells it from what other
// systems make in the same account.
const (
	metaSource  = "source"
	metaOrder   = "order_id"
	metaAttempt = "attempt"
)

// state is where an intent is.
type state int

const (
	// idle: it was never confirmed, or Stripe refused to look at it.
	idle state = iota
	// pending: Stripe itself waits for an outcome.
	pending
	settled
)

// judge reads the outcome of an intent.
func judge(intent *stripe.PaymentIntent) (Outcome, state) {
	switch intent.Status {
	case stripe.PaymentIntentStatusSucceeded:
		return Outcome{TransactionID: intent.ID}, settled
	case stripe.PaymentIntentStatusCanceled:
		return Outcome{Declined: "the payment was cancelled at the provider"}, settled
	case stripe.PaymentIntentStatusRequiresAction:
		return Outcome{Declined: "the customer must approve the payment"}, settled
	case stripe.PaymentIntentStatusRequiresPaymentMethod:
		if intent.LastPaymentError != nil {
			return Outcome{Declined: declineOf(intent.LastPaymentError)}, settled
		}

		return Outcome{}, idle
	case stripe.PaymentIntentStatusRequiresConfirmation:
		return Outcome{}, idle
	default:
		return Outcome{}, pending
	}
}

// declineOf says in Stripe's words why a card was not charged.
func declineOf(err *stripe.Error) string {
	reason := err.Msg
	if code := string(err.DeclineCode); code != "" {
		reason += " (" + code + ")"
	} else if err.Code != "" {
		reason += " (" + string(err.Code) + ")"
	}

	return reason
}

// Charge implements Gateway. An amount that Stripe has no units for is
// rejected.
func (s *Stripe) Charge(ctx context.Context, charge Charge) (Outcome, error) {
	units, err := minorUnits(charge.Amount, charge.Currency)

	switch {
	case err != nil:
		return Outcome{}, event.Reject(err)
	case units <= 0:
		return Outcome{Declined: "amount must be above zero"}, nil
	}

	id, err := s.recall(ctx, charge)
	if err != nil {
		return Outcome{}, err
	}

	if id == "" { // nothing was confirmed yet
		made, err := s.create(ctx, charge, units)
		if err != nil {
			return refusedCharge(err)
		}

		if id, err = s.remember(ctx, charge, made); err != nil {
			return Outcome{}, err
		}

		if id == made {
			return s.confirm(ctx, charge, id)
		}
	}

	intent, err := s.retrieve(ctx, id)
	if err != nil {
		return Outcome{}, err
	}

	if intent.Amount != units || !strings.EqualFold(string(intent.Currency), charge.Currency) {
		return Outcome{}, event.RejectAs(event.ReasonConflict, fmt.Errorf(
			"amount: is %s %s, but %s was made for another amount", charge.Amount, charge.Currency, id))
	}

	switch outcome, at := judge(intent); at {
	case settled:
		return outcome, nil
	case pending:
		return Outcome{}, unknown(fmt.Errorf("%s is %s", id, intent.Status))
	default:
		return s.confirm(ctx, charge, id)
	}
}

// recall returns the intent that was written down for a charge, if any.
func (s *Stripe) recall(ctx context.Context, charge Charge) (id string, err error) {
	err = s.pool.QueryRow(ctx, `SELECT intent_id FROM stripe_intents WHERE idempotency_key = $1`, charge.IdempotencyKey()).Scan(&id)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return "", unrecorded(fmt.Errorf("reading the intent of a charge: %w", err))
	}

	return id, nil
}

// remember writes down which intent stands for a charge, and returns the one
// that was written down first.
func (s *Stripe) remember(ctx context.Context, charge Charge, made string) (id string, err error) {
	err = s.pool.QueryRow(ctx, `
		INSERT INTO stripe_intents AS i (idempotency_key, order_id, attempt, intent_id) VALUES ($1, $2, $3, $4)
		ON CONFLICT (idempotency_key) DO UPDATE SET intent_id = i.intent_id
		RETURNING intent_id`, charge.IdempotencyKey(), charge.OrderID, max(charge.Attempt, 1), made).Scan(&id)
	if err != nil {
		return "", unrecorded(fmt.Errorf("writing down the intent of a charge: %w", err))
	}

	return id, nil
}

// create makes an intent. One too many is harmless: it is never confirmed.
func (s *Stripe) create(ctx context.Context, charge Charge, units int64) (id string, err error) {
	key := stripeKey(charge.IdempotencyKey())

	for range 2 {
		params := &stripe.PaymentIntentCreateParams{
			Amount:        new(units),
			Currency:      stripe.String(strings.ToLower(charge.Currency)),
			PaymentMethod: stripe.String(s.method),
			// No customer is there whom a bank could send elsewhere.
			AutomaticPaymentMethods: &stripe.PaymentIntentCreateAutomaticPaymentMethodsParams{
				Enabled: new(true), AllowRedirects: stripe.String("never"),
			},
			Metadata: map[string]string{
				metaSource: event.Source, metaOrder: charge.OrderID, metaAttempt: strconv.Itoa(max(charge.Attempt, 1)),
			},
		}
		params.SetIdempotencyKey(key)

		var intent *stripe.PaymentIntent

		intent, err = s.client.V1PaymentIntents.Create(ctx, params)
		if err == nil {
			return intent.ID, nil
		}

		if !spent(err) {
			break
		}

		key = freshKey(key)
	}

	return "", err
}

// confirm charges the intent that is written down. Stripe does so once for an
// intent, under whatever key.
func (s *Stripe) confirm(ctx context.Context, charge Charge, id string) (Outcome, error) {
	key := stripeKey(charge.IdempotencyKey()) + "-confirm"

	for again := false; ; again = true {
		params := &stripe.PaymentIntentConfirmParams{OffSession: new(true), ErrorOnRequiresAction: new(true)}
		params.SetIdempotencyKey(key)

		intent, err := s.client.V1PaymentIntents.Confirm(ctx, id, params)
		if err == nil {
			return concluded(intent)
		}

		answer, _ := errors.AsType[*stripe.Error](err)

		switch {
		case answer != nil && answer.Type == stripe.ErrorTypeCard:
			return Outcome{Declined: declineOf(answer)}, nil
		case answer != nil && answer.Code == stripe.ErrorCodePaymentIntentUnexpectedState:
			// Somebody else was faster, or the first answer was lost.
			intent, err := s.retrieve(ctx, id)
			if err != nil {
				return Outcome{}, err
			}

			return concluded(intent)
		case spent(err) && !again:
			key = freshKey(key)
		default:
			return refusedCharge(err)
		}
	}
}

func concluded(intent *stripe.PaymentIntent) (Outcome, error) {
	outcome, at := judge(intent)
	if at != settled {
		return Outcome{}, unknown(fmt.Errorf("%s is %s", intent.ID, intent.Status))
	}

	return outcome, nil
}

func (s *Stripe) retrieve(ctx context.Context, id string) (*stripe.PaymentIntent, error) {
	intent, err := s.client.V1PaymentIntents.Retrieve(ctx, id, &stripe.PaymentIntentRetrieveParams{
		Expand: []*string{stripe.String("latest_charge")},
	})
	if err != nil {
		return nil, failed("asking about "+id, err)
	}

	return intent, nil
}

// Find implements Gateway. It reads the intent that was written down. Without
// one nothing was confirmed, unless the database was restored from before: so
// Stripe's search, which lags by a minute or more, has the last word.
func (s *Stripe) Find(ctx context.Context, charge Charge) (Outcome, bool, error) {
	id, err := s.recall(ctx, charge)
	if err != nil {
		return Outcome{}, false, err
	}

	var candidates []*stripe.PaymentIntent

	if id != "" {
		intent, err := s.retrieve(ctx, id)
		if err != nil {
			return Outcome{}, false, err
		}

		candidates = append(candidates, intent)
	} else if candidates, err = s.search(ctx, charge.OrderID); err != nil {
		return Outcome{}, false, err
	}

	var (
		outcome Outcome
		found   bool
		waiting *stripe.PaymentIntent
	)

	for _, intent := range candidates {
		if id == "" && intent.Metadata[metaAttempt] != strconv.Itoa(max(charge.Attempt, 1)) {
			continue
		}

		switch became, at := judge(intent); {
		case at == pending:
			waiting = intent
		case at == settled && !outcome.Captured():
			outcome, found = became, true
		}
	}

	if waiting != nil && !outcome.Captured() {
		return Outcome{}, false, unknown(fmt.Errorf("%s is %s", waiting.ID, waiting.Status))
	}

	return outcome, found, nil
}

// search returns the intents of an order that Stripe's index knows.
func (s *Stripe) search(ctx context.Context, orderID string) ([]*stripe.PaymentIntent, error) {
	quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(orderID)
	params := &stripe.PaymentIntentSearchParams{
		SearchParams: stripe.SearchParams{
			Query: fmt.Sprintf("metadata['%s']:'%s' AND metadata['%s']:'%s'", metaSource, event.Source, metaOrder, quoted),
			Limit: new(int64(100)),
		},
		Expand: []*string{stripe.String("data.latest_charge")},
	}

	var intents []*stripe.PaymentIntent

	for intent, err := range s.client.V1PaymentIntents.Search(ctx, params) {
		if err != nil {
			return nil, failed("searching for order "+orderID, err)
		}

		intents = append(intents, intent)
	}

	return intents, nil
}

// Refund implements Gateway: it gives back all that is left of a capture.
func (s *Stripe) Refund(ctx context.Context, refund Refund) (string, error) {
	key := stripeKey(refund.IdempotencyKey())

	for again := false; ; again = true {
		// Without an amount: Stripe itself sees to it that no more is given back
		// than was captured, under whatever key.
		params := &stripe.RefundCreateParams{
			PaymentIntent: stripe.String(refund.TransactionID),
			Metadata:      map[string]string{metaSource: event.Source, metaOrder: refund.OrderID},
		}
		params.SetIdempotencyKey(key)

		made, err := s.client.V1Refunds.Create(ctx, params)
		if err == nil {
			return refundOf(made)
		}

		answer, _ := errors.AsType[*stripe.Error](err)

		switch {
		case answer != nil && answer.Code == stripe.ErrorCodeChargeAlreadyRefunded:
			return s.refunded(ctx, refund)
		case spent(err) && !again:
			key = freshKey(key)
		case answer != nil && refuses(answer):
			return "", &RefusedError{Reason: told(answer)}
		default:
			return "", failed("refunding "+refund.TransactionID, err)
		}
	}
}

// refunded returns the refund that was made before.
func (s *Stripe) refunded(ctx context.Context, refund Refund) (string, error) {
	params := &stripe.RefundListParams{PaymentIntent: stripe.String(refund.TransactionID)}

	for made, err := range s.client.V1Refunds.List(ctx, params) {
		if err != nil {
			return "", failed("asking for the refund of "+refund.TransactionID, err)
		}

		if id, err := refundOf(made); err == nil {
			return id, nil
		}
	}

	// A dispute gives money back too.
	return "", &RefusedError{Reason: refund.TransactionID + " was given back, but not by a refund"}
}

func refundOf(made *stripe.Refund) (string, error) {
	if made.Status == stripe.RefundStatusFailed || made.Status == stripe.RefundStatusCanceled {
		return "", &RefusedError{Reason: fmt.Sprintf("the refund %s is %s: %s", made.ID, made.Status, made.FailureReason)}
	}

	return made.ID, nil
}

// Ledger implements Gateway: it reads page by page, newest first.
func (s *Stripe) Ledger(ctx context.Context, since time.Time, fn func(Entry) error) error {
	params := &stripe.PaymentIntentListParams{
		ListParams:   stripe.ListParams{Limit: new(int64(100))},
		CreatedRange: &stripe.RangeQueryParams{GreaterThanOrEqual: max(since.Unix(), 0)},
		Expand:       []*string{stripe.String("data.latest_charge")},
	}

	for intent, err := range s.client.V1PaymentIntents.List(ctx, params) {
		if err != nil {
			return failed("listing the ledger", err)
		}

		if entry, ours := entryOf(intent); ours {
			if err := fn(entry); err != nil {
				return err
			}
		}
	}

	return nil
}

// Entries returns the captures of an order.
func (s *Stripe) Entries(ctx context.Context, orderID string) ([]Entry, error) {
	rows, err := s.pool.Query(ctx, `SELECT intent_id FROM stripe_intents WHERE order_id = $1 ORDER BY attempt`, orderID)
	if err != nil {
		return nil, fmt.Errorf("reading the intents of an order: %w", err)
	}

	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("reading the intents of an order: %w", err)
	}

	var intents []*stripe.PaymentIntent

	for _, id := range ids {
		intent, err := s.retrieve(ctx, id)
		if err != nil {
			return nil, err
		}

		intents = append(intents, intent)
	}

	if len(ids) == 0 {
		if intents, err = s.search(ctx, orderID); err != nil {
			return nil, err
		}
	}

	var entries []Entry

	for _, intent := range intents {
		if entry, ours := entryOf(intent); ours {
			entries = append(entries, entry)
		}
	}

	return entries, nil
}

// entryOf returns an intent that was captured for an order of ours.
func entryOf(intent *stripe.PaymentIntent) (Entry, bool) {
	if intent.Status != stripe.PaymentIntentStatusSucceeded || intent.Metadata[metaSource] != event.Source {
		return Entry{}, false
	}

	e := Entry{OrderID: intent.Metadata[metaOrder], TransactionID: intent.ID, At: time.Unix(intent.Created, 0).UTC()}
	e.Amount, e.Currency = amountOf(intent.AmountReceived, string(intent.Currency))

	if intent.LatestCharge != nil {
		e.Refunded, _ = amountOf(intent.LatestCharge.AmountRefunded, string(intent.Currency))
	}

	return e, true
}

// refusedCharge turns an error into the outcome of a charge where Stripe
// refuses the amount itself.
func refusedCharge(err error) (Outcome, error) {
	answer, ok := errors.AsType[*stripe.Error](err)
	if ok && refuses(answer) && (answer.Param == "amount" || answer.Param == "currency") {
		return Outcome{Declined: declineOf(answer)}, nil
	}

	return Outcome{}, failed("charging", err)
}

// refuses reports whether Stripe found fault with the request itself.
func refuses(answer *stripe.Error) bool {
	return answer.HTTPStatusCode == http.StatusBadRequest || answer.HTTPStatusCode == http.StatusNotFound ||
		answer.HTTPStatusCode == http.StatusPaymentRequired
}

// spent reports whether an idempotency key is of no use any more: Stripe gives
// a failure of its own again, or knows the key with other parameters, as when
// the payment method was configured anew.
func spent(err error) bool {
	answer, ok := errors.AsType[*stripe.Error](err)
	if !ok {
		return false
	}

	replayed := answer.LastResponse != nil && answer.LastResponse.Header.Get("Idempotent-Replayed") == "true"

	return answer.Type == stripe.ErrorTypeIdempotency && answer.HTTPStatusCode == http.StatusBadRequest ||
		replayed && answer.HTTPStatusCode >= http.StatusInternalServerError
}

// failed sorts the errors of everything that Stripe did not decide.
func failed(doing string, err error) error {
	answer, ok := errors.AsType[*stripe.Error](err)
	if !ok { // no answer, or none of Stripe's
		if _, network := errors.AsType[*url.Error](err); !network {
			err = errors.New("the answer cannot be read") // the library's error quotes it, secrets and all
		}

		return unknown(fmt.Errorf("%s: %w", doing, err))
	}

	err = fmt.Errorf("%s: stripe answered: %s", doing, told(answer))

	switch code := answer.HTTPStatusCode; {
	case code == http.StatusTooManyRequests:
		return event.Later(retryAfter(answer), err)
	case code == http.StatusConflict, code >= http.StatusInternalServerError:
		return unknown(err)
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return unavailable(err) // the key is the operator's business, not the order's
	default:
		return event.Later(0, err) // a mistake in the configuration, most likely
	}
}

// told is what Stripe said. The error's own text would be all of its JSON, with
// secrets of the intent.
func told(answer *stripe.Error) string {
	return fmt.Sprintf("%d %s (%s, request %s)", answer.HTTPStatusCode, answer.Msg, answer.Type, answer.RequestID)
}

func retryAfter(answer *stripe.Error) time.Duration {
	if answer.LastResponse == nil {
		return 0
	}

	return event.RetryAfter(answer.LastResponse.Header.Get("Retry-After"))
}

// maxKey is how long an idempotency key may be, with what is added to it.
const maxKey = 255 - 64

// stripeKey is the key as Stripe takes it: not too long, and of visible ASCII,
// as a header must be.
func stripeKey(key string) string {
	if len(key) <= maxKey && strings.IndexFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) < 0 {
		return key
	}

	sum := sha256.Sum256([]byte(key))

	return "millrace-" + hex.EncodeToString(sum[:])
}

func freshKey(key string) string { return key + "-again-" + rand.Text() }
