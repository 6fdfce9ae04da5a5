package crashpoint

// Declaration says where a point is and what a death there means.
type Declaration struct {
	Point Point
	// File and Func are the only place that calls At with the point.
	File, Func string
	// Means says what has happened at this point and what has not.
	Means string
}

const (
	batch      = "internal/engine/consumer/batch.go"
	deliver    = "internal/engine/consumer/deliver.go"
	handlers   = "internal/engine/consumer/handlers.go"
	retry      = "internal/engine/consumer/retry.go"
	router     = "internal/engine/consumer/router.go"
	window     = "internal/engine/broker/window/window.go"
	relay      = "internal/engine/outbox/relay.go"
	fulfilment = "internal/shop/fulfilment/"
)

// Declared lists all points in the order in which a message meets them.
var Declared = []Declaration{
	{Received, deliver, "settle", "A message has been delivered, and nothing has been done with it."},
	{Claimed, batch, "attempt", "The inbox rows of a batch are inserted, and its handler has not run. Nothing is committed."},
	{Handled, batch, "run", "The handler has run, and its events are not in the outbox. Nothing is committed."},
	{Committing, batch, "attempt", "Everything is written but the events, which are sent with COMMIT."},
	{Committed, batch, "transact", "The batch is committed, and none of its messages is acknowledged."},
	{Acking, deliver, "settle", "The fate of a message is settled for all its consumers, and it is not acknowledged."},
	{Acked, deliver, "settle", "A message is acknowledged in memory, and its broker does not know."},

	{EffectAdmitted, handlers, "OnEffect", "An effect is admitted, and another system has not been asked for it."},
	{EffectPerformed, handlers, "OnEffect", "Another system has performed an effect, and nothing here records it."},
	{EffectRecorded, handlers, "OnEffect", "The result of an effect is committed, and its message is not acknowledged."},
	{Charged, fulfilment + "fulfilment.go", "Charge", "The provider has charged an order, and the answer has not been used."},
	{Emailed, "internal/shop/notification/notification.go", "SendEmail", "The mail server has an e-mail, and the answer has not been used."},

	{WindowTracked, window, "Add", "A message from Kafka or RabbitMQ is in hand, and no lane has delivered it."},
	{WindowFinished, window, "finish", "A message is finished, and the prefix of finished messages is not marked."},
	{WindowMarked, window, "report", "The prefix of finished messages is marked, and the broker may not know."},
	{RabbitMQAcked, "internal/engine/broker/rabbitmq/subscriber.go", "acknowledge", "An acknowledgement has been sent to RabbitMQ."},
	{RabbitMQSent, "internal/engine/broker/rabbitmq/publisher.go", "send", "A message has been sent to RabbitMQ and is not confirmed."},

	{RelayRead, relay, "found", "Rows of the outbox are read, and their lanes may publish them."},
	{RelayPublishing, relay, "lane", "A lane has taken a row and has not published it."},
	{RelayPublished, relay, "lane", "The broker has confirmed a row, and the relay has not noted that."},
	{RelayConfirmed, relay, "lane", "A row is noted as confirmed, its key is free, and the row is still in the table."},
	{RelayDeleting, relay, "exchange", "Confirmed rows are about to be deleted."},
	{RelayDeleted, relay, "round", "Confirmed rows are deleted, and the rows that were read with them are not queued."},
	{RelayScheduled, relay, "tick", "Scheduled rows have become due, and have not been read."},

	{FailedKeeping, deliver, "carryOut", "A message is to be parked or stopped, and it is not stored."},
	{FailedKept, deliver, "carryOut", "A message is parked or stopped, and it is not acknowledged."},
	{FailedBlocked, batch, "admit", "Messages are stored as blocked by an earlier one, and nothing is committed."},
	{FailedLeased, retry, "retryWaiting", "A key is leased, and its messages have not been tried."},
	{FailedApplied, deliver, "carryOut", "A waiting message is applied, and it is still stored as waiting."},
	{FailedFinished, deliver, "carryOut", "A waiting message is applied and no longer stored as waiting, and its key is leased."},
	{FailedTried, retry, "retryKey", "A waiting message has its new fate, and its key is leased."},
	{FailedReleased, retry, "retryWaiting", "The lease of a key is over."},
	{FailedRequeuing, "internal/engine/failed/requeue.go", "release", "Stopped messages wait again, and nothing is committed."},

	{CancelFound, fulfilment + "ends.go", "FindForCancel", "The provider has been asked about the charge of an order to cancel."},
	{CancelDecided, fulfilment + "ends.go", "Cancel", "An order is cancelled, its stock released and its refund requested, and nothing is committed."},
	{ExpirySwept, fulfilment + "expiry.go", "sweepPage", "The messages for orders that expire are in the outbox, and nothing is committed."},
	{ExpiryFound, fulfilment + "ends.go", "FindForExpiry", "The provider has been asked about the charge of an order to expire."},
	{ExpiryDecided, fulfilment + "ends.go", "Expire", "An order has expired and its stock is released, and nothing is committed."},
	{RefundSent, fulfilment + "ends.go", "Refund", "The provider has refunded a capture, and nothing here records it."},
	{RefundDecided, fulfilment + "ends.go", "RecordRefund", "A refund is recorded with its order, and nothing is committed."},

	{DrainBegan, router, "drain", "The service takes no more messages, and some are in flight."},
	{DrainSettled, router, "drain", "No message is in flight, and the subscriptions are open."},
	{DrainUnsubscribed, router, "Run", "The subscriptions are closed, and the relay runs."},
	{DrainPublished, relay, "drain", "The lanes of the relay are done, and their last rows are still in the table."},
	{DrainDeleted, relay, "drain", "The last confirmed rows are deleted, and the relay owns its shards."},
	{DrainReleased, relay, "drain", "The relay has left, and the connection to the broker is open."},
	{DrainClosed, "internal/app/service.go", "serve", "The connections to all brokers are closed."},
}
