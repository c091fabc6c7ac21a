"""The node daemon: feeds events to the cores, carries out their effects, keeps durable state. Runs no user code."""
