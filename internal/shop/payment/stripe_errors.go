package payment

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/stripe/stripe-go/v82"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

// requestError classifies an error that is not Stripe's decision about the
// request.
func requestError(doing string, err error) error {
	answer, ok := errors.AsType[*stripe.Error](err)
	if !ok { // no answer, or not one of Stripe's
		if _, network := errors.AsType[*url.Error](err); !network {
			err = errors.New("the response cannot be read") // the library's error quotes it, secrets included
		}

		return unknown(fmt.Errorf("%s: %w", doing, err))
	}

	err = fmt.Errorf("%s: stripe answered: %s", doing, describe(answer))

	switch code := answer.HTTPStatusCode; {
	case code == http.StatusTooManyRequests:
		var after time.Duration
		if answer.LastResponse != nil {
			after = event.RetryAfter(answer.LastResponse.Header.Get("Retry-After"))
		}

		return event.Later(after, err)
	case code == http.StatusConflict, code >= http.StatusInternalServerError:
		return unknown(err)
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return event.Unavailable(Dependency, err) // our key is at fault, not the order
	default:
		return event.Later(0, err) // most likely a mistake in the configuration
	}
}

// chargeError returns a declined outcome if Stripe refuses the amount itself,
// and an error otherwise.
func chargeError(err error) (Outcome, error) {
	answer, ok := errors.AsType[*stripe.Error](err)
	if ok && refuses(answer) && (answer.Param == "amount" || answer.Param == "currency") {
		return Outcome{Declined: declineReason(answer)}, nil
	}

	return Outcome{}, requestError("charging", err)
}

// declineReason returns Stripe's reason for not charging a card.
func declineReason(err *stripe.Error) string {
	reason := err.Msg
	if code := string(err.DeclineCode); code != "" {
		reason += " (" + code + ")"
	} else if err.Code != "" {
		reason += " (" + string(err.Code) + ")"
	}

	return event.Text(event.Shorten(scrub.Text(reason), maxReason))
}

// refuses reports whether Stripe rejected the request itself.
func refuses(answer *stripe.Error) bool {
	return answer.HTTPStatusCode == http.StatusBadRequest || answer.HTTPStatusCode == http.StatusNotFound ||
		answer.HTTPStatusCode == http.StatusPaymentRequired
}

// describe returns Stripe's message. The text of the error itself is Stripe's
// whole JSON, which contains secrets of the intent.
func describe(answer *stripe.Error) string {
	return fmt.Sprintf("%d %s (%s, request %s)", answer.HTTPStatusCode, answer.Msg, answer.Type, answer.RequestID)
}

// withKey calls Stripe with an idempotency key, and once more with a fresh one
// if the key is spent.
func withKey[T any](key, suffix string, call func(key string) (T, error)) (T, error) {
	key = headerSafe(key) + suffix

	result, err := call(key)
	if spent(err) {
		return call(key + "-again-" + rand.Text())
	}

	return result, err
}

// spent reports whether an idempotency key has become useless: Stripe replays
// an internal error, or has seen the key with other parameters, for example
// because the configured payment method has changed.
func spent(err error) bool {
	answer, ok := errors.AsType[*stripe.Error](err)
	if !ok {
		return false
	}

	replayed := answer.LastResponse != nil && answer.LastResponse.Header.Get("Idempotent-Replayed") == "true"

	return answer.Type == stripe.ErrorTypeIdempotency && answer.HTTPStatusCode == http.StatusBadRequest ||
		replayed && answer.HTTPStatusCode >= http.StatusInternalServerError
}

// maxKey is the maximum length of a key. It leaves room for suffixes: Stripe accepts
// 255 characters.
const maxKey = 255 - 64

// headerSafe returns a key of visible ASCII, as an HTTP header requires, and of
// bounded length. A key that does not qualify is replaced with its hash.
func headerSafe(key string) string {
	if len(key) <= maxKey && strings.IndexFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) < 0 {
		return key
	}

	sum := sha256.Sum256([]byte(key))

	return "millrace-" + hex.EncodeToString(sum[:])
}
