// Package simulate has no code of the product: its tests run the router, the windows of
// the brokers, the relay and the failed messages for hours of simulated time against
// models of Postgres and of the brokers, which fail at random from a seed.
//
//	make simulate SEEDS=10000
//	make simulate SEED=4711
package simulate
