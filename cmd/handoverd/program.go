package main

func newProgram(a *app) (service, error) { return nil, nil }
