package driver

import "fmt"

// Scope says how much a broker's refusal covers.
type Scope string

// Scopes.
const (
	// OneMessage means that one message is refused, such as one that is too large.
	// Others on its topic may be accepted.
	OneMessage Scope = "message"
	// OnePartition means that a partition is refused, such as one without a leader: the
	// message, and others on its topic whose keys are on that partition. We cannot tell
	// which ones.
	OnePartition Scope = "partition"
	// OneTopic means that a topic is refused: it is missing, or the account cannot use
	// it.
	OneTopic Scope = "topic"
	// Account means that the account is rejected: its credentials are wrong. Nothing can
	// be sent.
	Account Scope = "account"
)

// RefusedError reports that the broker answers but refuses, and will keep refusing until
// somebody changes the message, the topic or the settings. Any other error from
// publishing or connecting means that the connection or the broker is unavailable.
type RefusedError struct {
	Scope Scope
	// Topic is the refused topic, or the topic of the refused message.
	Topic string
	// Remedy is what an operator can do.
	Remedy string
	// Err is the broker's answer.
	Err error
}

// Error implements error.
func (e *RefusedError) Error() string {
	if e.Scope == Account {
		return fmt.Sprintf("the broker rejects the account: %v", e.Err)
	}

	return fmt.Sprintf("the broker refuses a %s (%s): %v", e.Scope, e.Topic, e.Err)
}

// Unwrap implements errors.Unwrap.
func (e *RefusedError) Unwrap() error { return e.Err }
