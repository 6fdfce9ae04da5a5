// Package millrace assembles the service: an event processor for orders,
// inventory and payments that applies each message from Kafka, RabbitMQ or
// Postgres alone to Postgres exactly once in effect, in order per key, and
// publishes what follows.
//
// The assembly is made at build time by google/wire: wire.go says what it
// consists of, wire_gen.go is what `make generate` makes of it.
package millrace
