// Package crashpoint names the moments at which the death of a process could lose,
// repeat or reorder something. A program that is built with the tag crashpoints kills
// itself at the one that its environment names; in any other program, [At] is empty and
// costs nothing.
package crashpoint

// Variable is the environment variable that says where a program kills itself: the name
// of a point, optionally followed by a colon and the number of the pass, such as
// relay.confirmed:3. Without a number it is the first pass.
const Variable = "MILLRACE_CRASH_AT"

// Point is a moment in the life of a message or of the service.
type Point string

// Points. [Declared] explains them.
const (
	Received   Point = "consumer.received"
	Claimed    Point = "consumer.claimed"
	Handled    Point = "consumer.handled"
	Committing Point = "consumer.committing"
	Committed  Point = "consumer.committed"
	Acking     Point = "consumer.acking"
	Acked      Point = "consumer.acked"

	EffectAdmitted  Point = "effect.admitted"
	EffectPerformed Point = "effect.performed"
	EffectRecorded  Point = "effect.recorded"
	Charged         Point = "payment.charged"
	Emailed         Point = "notification.emailed"

	WindowTracked  Point = "window.tracked"
	WindowFinished Point = "window.finished"
	WindowMarked   Point = "window.marked"
	RabbitMQAcked  Point = "rabbitmq.acked"
	RabbitMQSent   Point = "rabbitmq.sent"

	RelayRead       Point = "relay.read"
	RelayPublishing Point = "relay.publishing"
	RelayPublished  Point = "relay.published"
	RelayConfirmed  Point = "relay.confirmed"
	RelayDeleting   Point = "relay.deleting"
	RelayDeleted    Point = "relay.deleted"
	RelayScheduled  Point = "relay.scheduled"

	FailedKeeping   Point = "failed.keeping"
	FailedKept      Point = "failed.kept"
	FailedBlocked   Point = "failed.blocked"
	FailedLeased    Point = "failed.leased"
	FailedApplied   Point = "failed.applied"
	FailedFinished  Point = "failed.finished"
	FailedTried     Point = "failed.tried"
	FailedReleased  Point = "failed.released"
	FailedRequeuing Point = "failed.requeuing"

	CancelFound   Point = "cancel.found"
	CancelDecided Point = "cancel.decided"
	ExpirySwept   Point = "expiry.swept"
	ExpiryFound   Point = "expiry.found"
	ExpiryDecided Point = "expiry.decided"
	RefundSent    Point = "refund.sent"
	RefundDecided Point = "refund.decided"

	DrainBegan        Point = "drain.began"
	DrainSettled      Point = "drain.settled"
	DrainUnsubscribed Point = "drain.unsubscribed"
	DrainPublished    Point = "drain.published"
	DrainDeleted      Point = "drain.deleted"
	DrainReleased     Point = "drain.released"
	DrainClosed       Point = "drain.closed"
)
