package payment

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stripe/stripe-go/v82"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Stripe charges through Stripe's PaymentIntents, one for each attempt to charge an
// order. An intent is created, then its id is stored, and only then is it confirmed.
// Confirming moves the money. Stripe moves it only once per intent, so a charge can be
// repeated safely at any later time. Stripe's idempotency keys are not enough: they
// protect for only a day, and during that day they replay a stored 500.
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
			// A redirect could send the key anywhere.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		MaxNetworkRetries: new(int64(0)), // the consumer retries
		LeveledLogger:     &stripe.LeveledLogger{Level: stripe.LevelNull},
		EnableTelemetry:   new(false),
	})

	return &Stripe{
		client: stripe.NewClient(string(cfg.SecretKey), stripe.WithBackends(&stripe.Backends{API: backend})),
		method: cfg.PaymentMethod,
		pool:   pool,
	}
}

// Metadata of intents and refunds. The source distinguishes them from those of
// other systems in the same account.
const (
	metaSource  = "source"
	metaOrder   = "order_id"
	metaAttempt = "attempt"
)

// progress is the stage that an intent has reached.
type progress int

const (
	// unconfirmed: never confirmed, or Stripe refused to process it.
	unconfirmed progress = iota
	// unapproved: the customer must approve it.
	unapproved
	// processing: Stripe itself is waiting for an outcome.
	processing
	settled
)

// notApproved is the reason for declining an intent that the customer had to approve.
const notApproved = "the customer must approve the payment"

// outcomeOf returns the outcome of an intent, if it has settled.
func outcomeOf(intent *stripe.PaymentIntent) (Outcome, progress) {
	switch intent.Status {
	case stripe.PaymentIntentStatusSucceeded:
		return Outcome{TransactionID: intent.ID}, settled
	case stripe.PaymentIntentStatusCanceled:
		if intent.CancellationReason == stripe.PaymentIntentCancellationReasonAbandoned { // see finish
			return Outcome{Declined: notApproved}, settled
		}

		return Outcome{Declined: "the payment was cancelled at the provider"}, settled
	case stripe.PaymentIntentStatusRequiresAction:
		return Outcome{}, unapproved
	case stripe.PaymentIntentStatusRequiresPaymentMethod:
		if intent.LastPaymentError != nil {
			return Outcome{Declined: declineReason(intent.LastPaymentError)}, settled
		}

		return Outcome{}, unconfirmed
	case stripe.PaymentIntentStatusRequiresConfirmation:
		return Outcome{}, unconfirmed
	default:
		return Outcome{}, processing
	}
}

// Charge implements Gateway. It rejects an amount that Stripe's units cannot express.
func (s *Stripe) Charge(ctx context.Context, charge Charge) (Outcome, error) {
	units, err := minorUnits(charge.Amount, charge.Currency)

	switch {
	case err != nil:
		return Outcome{}, event.Reject(err)
	case units <= 0:
		return Outcome{Declined: "amount must be above zero"}, nil
	}

	id, err := s.storedIntent(ctx, charge)
	if err != nil {
		return Outcome{}, err
	}

	if id == "" { // nothing has been confirmed yet
		created, err := s.create(ctx, charge, units)
		if err != nil {
			return chargeError(err)
		}

		if id, err = s.storeIntent(ctx, charge, created); err != nil {
			return Outcome{}, err
		}

		if id == created {
			return s.confirm(ctx, charge, id)
		}
	}

	intent, err := s.retrieve(ctx, id)
	if err != nil {
		return Outcome{}, err
	}

	if intent.Amount != units || !strings.EqualFold(string(intent.Currency), charge.Currency) {
		return Outcome{}, event.RejectAs(event.ReasonConflict, fmt.Errorf(
			"amount: is %s %s, but %s was created for another amount", charge.Amount, charge.Currency, id))
	}

	if _, reached := outcomeOf(intent); reached == unconfirmed {
		return s.confirm(ctx, charge, id)
	}

	return s.finish(ctx, intent)
}

// storedIntent returns the id of the intent that was stored for a charge, or "".
func (s *Stripe) storedIntent(ctx context.Context, charge Charge) (id string, err error) {
	err = s.pool.QueryRow(ctx, `SELECT intent_id FROM stripe_intents WHERE idempotency_key = $1`, charge.IdempotencyKey()).Scan(&id)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return "", unrecorded(fmt.Errorf("reading the intent of a charge: %w", err))
	}

	return id, nil
}

// storeIntent stores the intent of a charge and returns the one that was stored
// first.
func (s *Stripe) storeIntent(ctx context.Context, charge Charge, created string) (id string, err error) {
	err = s.pool.QueryRow(ctx, `
		INSERT INTO stripe_intents AS i (idempotency_key, order_id, attempt, intent_id) VALUES ($1, $2, $3, $4)
		ON CONFLICT (idempotency_key) DO UPDATE SET intent_id = i.intent_id
		RETURNING intent_id`, charge.IdempotencyKey(), charge.OrderID, charge.attempt(), created).Scan(&id)
	if err != nil {
		return "", unrecorded(fmt.Errorf("storing the intent of a charge: %w", err))
	}

	return id, nil
}

// create creates an intent. A superfluous one is harmless: it is never
// confirmed.
func (s *Stripe) create(ctx context.Context, charge Charge, units int64) (id string, err error) {
	intent, err := withKey(charge.IdempotencyKey(), "", func(key string) (*stripe.PaymentIntent, error) {
		params := &stripe.PaymentIntentCreateParams{
			Amount:        new(units),
			Currency:      stripe.String(strings.ToLower(charge.Currency)),
			PaymentMethod: stripe.String(s.method),
			// No customer is present for a bank to redirect.
			AutomaticPaymentMethods: &stripe.PaymentIntentCreateAutomaticPaymentMethodsParams{
				Enabled: new(true), AllowRedirects: stripe.String("never"),
			},
			Metadata: map[string]string{
				metaSource: event.Source, metaOrder: charge.OrderID, metaAttempt: strconv.Itoa(charge.attempt()),
			},
		}
		params.SetIdempotencyKey(key)

		return s.client.V1PaymentIntents.Create(ctx, params)
	})
	if err != nil {
		return "", err
	}

	return intent.ID, nil
}

// confirm charges a stored intent. Stripe does so once per intent, whatever the
// idempotency key.
func (s *Stripe) confirm(ctx context.Context, charge Charge, id string) (Outcome, error) {
	intent, err := withKey(charge.IdempotencyKey(), "-confirm", func(key string) (*stripe.PaymentIntent, error) {
		params := &stripe.PaymentIntentConfirmParams{OffSession: new(true), ErrorOnRequiresAction: new(true)}
		params.SetIdempotencyKey(key)

		return s.client.V1PaymentIntents.Confirm(ctx, id, params)
	})

	answer, _ := errors.AsType[*stripe.Error](err)

	switch {
	case answer != nil && answer.Type == stripe.ErrorTypeCard:
		return Outcome{Declined: declineReason(answer)}, nil
	case answer != nil && answer.Code == stripe.ErrorCodePaymentIntentUnexpectedState:
		// Another process was faster, or the first answer was lost.
		if intent, err = s.retrieve(ctx, id); err != nil {
			return Outcome{}, err
		}
	case err != nil:
		return chargeError(err)
	}

	return s.finish(ctx, intent)
}

// finish returns the final outcome of a confirmed intent, or [ErrPending].
// It cancels an intent that a customer must approve: no customer is present, and an
// approval would charge the card after the order has ended.
func (s *Stripe) finish(ctx context.Context, intent *stripe.PaymentIntent) (Outcome, error) {
	outcome, reached := outcomeOf(intent)

	if reached == unapproved {
		cancelled, err := s.client.V1PaymentIntents.Cancel(ctx, intent.ID, &stripe.PaymentIntentCancelParams{
			CancellationReason: stripe.String(string(stripe.PaymentIntentCancellationReasonAbandoned)),
		})
		if answer, ok := errors.AsType[*stripe.Error](err); ok && answer.Code == stripe.ErrorCodePaymentIntentUnexpectedState {
			cancelled, err = s.retrieve(ctx, intent.ID) // approved or cancelled in the meantime
		} else if err != nil {
			err = requestError("cancelling "+intent.ID, err)
		}

		if err != nil {
			return Outcome{}, err
		}

		intent = cancelled
		outcome, reached = outcomeOf(intent)
	}

	if reached != settled {
		return Outcome{}, pending(time.Unix(intent.Created, 0), fmt.Sprintf("%s is %s", intent.ID, intent.Status))
	}

	return outcome, nil
}

func (s *Stripe) retrieve(ctx context.Context, id string) (*stripe.PaymentIntent, error) {
	intent, err := s.client.V1PaymentIntents.Retrieve(ctx, id, &stripe.PaymentIntentRetrieveParams{
		Expand: []*string{stripe.String("latest_charge")},
	})
	if err != nil {
		return nil, requestError("retrieving "+id, err)
	}

	return intent, nil
}

// Find implements Gateway. It reads the stored intent. If there is none, nothing was
// confirmed, unless the database was restored from a backup. Find then uses Stripe's
// search, which lags by a minute or more.
func (s *Stripe) Find(ctx context.Context, charge Charge) (Outcome, error) {
	id, err := s.storedIntent(ctx, charge)
	if err != nil {
		return Outcome{}, err
	}

	candidates, err := s.intents(ctx, charge.OrderID, id)
	if err != nil {
		return Outcome{}, err
	}

	var (
		found Outcome
		open  *stripe.PaymentIntent // its outcome may still be a capture
	)

	for _, intent := range candidates {
		if id == "" && intent.Metadata[metaAttempt] != strconv.Itoa(charge.attempt()) {
			continue
		}

		switch outcome, reached := outcomeOf(intent); {
		case reached == processing || reached == unapproved:
			open = intent
		case reached == settled && !found.Captured():
			found = outcome
		}
	}

	if open != nil && !found.Captured() {
		return s.finish(ctx, open)
	}

	return found, nil
}

// intents returns the intents with these ids or, without an id, those of the
// order that Stripe has indexed.
func (s *Stripe) intents(ctx context.Context, orderID string, ids ...string) (intents []*stripe.PaymentIntent, err error) {
	ids = slices.DeleteFunc(ids, func(id string) bool { return id == "" })
	if len(ids) == 0 {
		return s.search(ctx, orderID)
	}

	for _, id := range ids {
		intent, err := s.retrieve(ctx, id)
		if err != nil {
			return nil, err
		}

		intents = append(intents, intent)
	}

	return intents, nil
}

// search returns the intents of an order that Stripe has indexed.
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
			return nil, requestError("searching for order "+orderID, err)
		}

		intents = append(intents, intent)
	}

	return intents, nil
}

// Refund implements Gateway: it refunds what remains of a capture, once. It first
// looks for an earlier refund, because Stripe forgets idempotency keys, and because
// after a failed refund it is up to a person to decide what to do.
func (s *Stripe) Refund(ctx context.Context, refund Refund) (string, error) {
	whole, err := minorUnits(refund.Amount, refund.Currency)
	if err != nil {
		return "", event.Reject(err)
	}

	made, err := s.refunds(ctx, refund.TransactionID)
	if err != nil {
		return "", err
	}

	ours := func(r *stripe.Refund) bool { return r.Metadata[metaSource] == event.Source }
	if refund.FailedID != "" || slices.ContainsFunc(made, ours) {
		return outcomeOfRefunds(refund, whole, made)
	}

	created, err := withKey(refund.IdempotencyKey(), "", func(key string) (*stripe.Refund, error) {
		// If the request names no amount, Stripe itself ensures that no more is
		// refunded than was captured, whatever the idempotency key.
		params := &stripe.RefundCreateParams{
			PaymentIntent: stripe.String(refund.TransactionID),
			Metadata:      map[string]string{metaSource: event.Source, metaOrder: refund.OrderID},
		}
		params.SetIdempotencyKey(key)

		return s.client.V1Refunds.Create(ctx, params)
	})

	answer, _ := errors.AsType[*stripe.Error](err)

	switch {
	case err == nil:
		return outcomeOfRefunds(refund, whole, slices.Insert(made, 0, created))
	case answer != nil && answer.Code == stripe.ErrorCodeChargeAlreadyRefunded:
		if made, err = s.refunds(ctx, refund.TransactionID); err != nil { // another process was faster
			return "", err
		}

		return outcomeOfRefunds(refund, whole, made)
	case answer != nil && refuses(answer):
		return "", &RefusedError{Reason: describe(answer)}
	default:
		return "", requestError("refunding "+refund.TransactionID, err)
	}
}

// refunds returns the refunds of an intent, newest first.
func (s *Stripe) refunds(ctx context.Context, intentID string) (made []*stripe.Refund, err error) {
	params := &stripe.RefundListParams{
		ListParams: stripe.ListParams{Limit: new(int64(100))}, PaymentIntent: stripe.String(intentID),
	}

	for refund, err := range s.client.V1Refunds.List(ctx, params) {
		if answer, ok := errors.AsType[*stripe.Error](err); ok && refuses(answer) { // no such intent
			return nil, &RefusedError{Reason: describe(answer)}
		}

		if err != nil {
			return nil, requestError("listing the refunds of "+intentID, err)
		}

		made = append(made, refund)
	}

	return made, nil
}

// outcomeOfRefunds returns the id of the newest successful refund, if the successful
// refunds add up to the whole capture. It returns an [ErrPending] if the pending ones
// may make up the rest, and a [RefusedError] otherwise.
func outcomeOfRefunds(refund Refund, whole int64, made []*stripe.Refund) (id string, err error) {
	var (
		returned, awaited int64
		waits             error
		reasons           []string // the newest failure
	)

	for _, r := range made {
		finished, err := finishedRefund(r)
		refused, failed := errors.AsType[*RefusedError](err)

		switch {
		case err == nil:
			returned, id = returned+r.Amount, cmp.Or(id, finished)
		case !failed:
			awaited, waits = awaited+r.Amount, cmp.Or(waits, err)
		case reasons == nil:
			reasons = []string{refused.Reason}
		}
	}

	switch {
	case id != "" && returned >= whole:
		return id, nil
	case waits != nil && returned+awaited >= whole:
		return "", waits
	case len(made) == 0:
		// A dispute also returns money.
		return "", &RefusedError{Reason: refund.TransactionID + " was returned, but not by a refund"}
	case returned+awaited > 0:
		amount, currency := amountOf(returned, refund.Currency)
		reasons = slices.Insert(reasons, 0, fmt.Sprintf("%s of %s %s is refunded", amount, refund.Amount, currency))
	}

	return "", &RefusedError{Reason: strings.Join(reasons, "; ")}
}

// finishedRefund returns the id of a refund that succeeded, a [RefusedError] if it
// failed, and an [ErrPending] otherwise.
func finishedRefund(refund *stripe.Refund) (string, error) {
	switch refund.Status {
	case stripe.RefundStatusSucceeded:
		return refund.ID, nil
	case stripe.RefundStatusFailed, stripe.RefundStatusCanceled:
		return "", &RefusedError{Reason: fmt.Sprintf("the refund %s is %s", refund.ID, refundFailure(refund))}
	default:
		return "", pending(time.Unix(refund.Created, 0), fmt.Sprintf("the refund %s is %s", refund.ID, refund.Status))
	}
}

// refundFailure describes how a refund failed.
func refundFailure(refund *stripe.Refund) string {
	if refund.FailureReason == "" {
		return string(refund.Status)
	}

	return fmt.Sprintf("%s: %s", refund.Status, refund.FailureReason)
}

// Ledger implements Gateway. It reads page by page, newest first.
func (s *Stripe) Ledger(ctx context.Context, since time.Time, fn func(Entry) error) error {
	params := &stripe.PaymentIntentListParams{
		ListParams:   stripe.ListParams{Limit: new(int64(100))},
		CreatedRange: &stripe.RangeQueryParams{GreaterThanOrEqual: max(since.Unix(), 0)},
		Expand:       []*string{stripe.String("data.latest_charge")},
	}

	for intent, err := range s.client.V1PaymentIntents.List(ctx, params) {
		if err != nil {
			return requestError("listing payment intents", err)
		}

		if entry, ours := entryOf(intent); ours {
			if err := fn(entry); err != nil {
				return err
			}
		}
	}

	return nil
}

// Entries implements Gateway.
func (s *Stripe) Entries(ctx context.Context, orderID string) ([]Entry, error) {
	ids, err := postgres.Collect(ctx, s.pool, pgx.RowTo[string], `SELECT intent_id FROM stripe_intents WHERE order_id = $1 ORDER BY attempt`, orderID)
	if err != nil {
		return nil, fmt.Errorf("reading the intents of an order: %w", err)
	}

	intents, err := s.intents(ctx, orderID, ids...)
	if err != nil {
		return nil, err
	}

	var entries []Entry

	for _, intent := range intents {
		if entry, ours := entryOf(intent); ours {
			entries = append(entries, entry)
		}
	}

	return entries, nil
}

// entryOf returns the capture of an intent; ours is false if there is none, or
// if another system created the intent.
func entryOf(intent *stripe.PaymentIntent) (e Entry, ours bool) {
	if intent.Status != stripe.PaymentIntentStatusSucceeded || intent.Metadata[metaSource] != event.Source {
		return Entry{}, false
	}

	e = Entry{OrderID: intent.Metadata[metaOrder], TransactionID: intent.ID, At: time.Unix(intent.Created, 0).UTC()}
	e.Amount, e.Currency = amountOf(intent.AmountReceived, string(intent.Currency))

	if intent.LatestCharge != nil {
		e.Refunded, _ = amountOf(intent.LatestCharge.AmountRefunded, string(intent.Currency))
	}

	return e, true
}
