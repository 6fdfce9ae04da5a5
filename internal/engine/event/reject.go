package event

import "errors"

// Reason classifies why a message was stopped. It labels metrics and failed
// messages.
type Reason string

// Reasons for stopping a message.
const (
	ReasonTooLarge  Reason = "too_large"     // larger than MaxPayload
	ReasonMalformed Reason = "malformed"     // not JSON, or of the wrong shape
	ReasonInvalid   Reason = "invalid"       // a field is missing or out of range
	ReasonRefused   Reason = "refused"       // a domain rule forbids it
	ReasonConflict  Reason = "conflict"      // another payload was applied under its ID
	ReasonForgotten Reason = "forgotten"     // so old that the inbox may have forgotten it
	ReasonFailed    Reason = "handler_error" // the handler kept failing
	ReasonPanicked  Reason = "panic"         // the handler panicked
	ReasonPending   Reason = "pending"       // waits for an outcome; see Pending
	ReasonEarly     Reason = "early"         // the message awaits another one
)

// Reasons lists all reasons.
var Reasons = []Reason{ReasonTooLarge, ReasonMalformed, ReasonInvalid, ReasonRefused, ReasonConflict, ReasonForgotten, ReasonFailed, ReasonPanicked, ReasonPending, ReasonEarly}

// RejectError marks an error as the message's own fault. A retry cannot help, so the
// message is stopped immediately.
type RejectError struct {
	Reason Reason
	Err    error
}

func (e *RejectError) Error() string { return e.Err.Error() }

func (e *RejectError) Unwrap() error { return e.Err }

// Reject marks err as a refusal by a domain rule.
func Reject(err error) error { return RejectAs(ReasonRefused, err) }

// RejectAs marks err as the message's own fault, for the given reason.
func RejectAs(reason Reason, err error) error { return &RejectError{Reason: reason, Err: err} }

// UnavailableError reports that an effect could not be attempted, or that its outcome
// is unknown, because a dependency is unavailable. Consumers that need the dependency
// wait for it, and the message is retried indefinitely.
type UnavailableError struct {
	// Dependency is the name of the dependency in logs and metrics.
	Dependency string
	Err        error
}

func (e *UnavailableError) Error() string { return e.Dependency + " is unavailable: " + e.Err.Error() }

func (e *UnavailableError) Unwrap() error { return e.Err }

// Unavailable marks err as a failure of a dependency.
func Unavailable(dependency string, err error) error {
	return &UnavailableError{Dependency: dependency, Err: err}
}

// RejectSome is returned by a batch handler to reject some events, by index in the
// batch. The transaction is rolled back, those events are rejected and the rest are
// run again together.
type RejectSome map[int]error

func (r RejectSome) Error() string {
	errs := make([]error, 0, len(r))
	for _, err := range r {
		errs = append(errs, err)
	}

	return errors.Join(errs...).Error()
}

// Err returns r as an error, or nil if r is empty.
func (r RejectSome) Err() error {
	if len(r) == 0 {
		return nil
	}

	return r
}
