"""What a Keras model is: which layer calls which, and what each costs."""
