package postgres

// MigrateFrom is Migrate with other files and another time limit.
var MigrateFrom = migrate
